"""What a program is made of, by its jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

LAPACK = {"cholesky", "triangular_solve", "eigh", "lu", "qr", "svd"}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, through the jaxprs within."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def traced(fn: Callable[..., Any], *args: Any) -> list[Any]:
    """The equations of `fn(*args)`."""
    return list(equations(jax.make_jaxpr(fn)(*args).jaxpr))


def lapack(found: list[Any]) -> set[str]:
    """The operations among these equations that call LAPACK."""
    return {equation.primitive.name for equation in found} & LAPACK


def largest(found: list[Any]) -> tuple[int, str]:
    """The size of the largest array that these equations make, and which of them makes it."""
    return max(
        (v.aval.size, e.primitive.name) for e in found for v in e.outvars if hasattr(v.aval, "size")
    )
