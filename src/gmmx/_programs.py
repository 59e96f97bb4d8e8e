"""Entry points: how a function becomes a program.

XLA has two code generators for fused loops on a CPU. Its default one makes the faster loops. The
other one compiles in half the time, which is what counts for a program that runs for milliseconds.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax

_QUICK = {"xla_cpu_use_fusion_emitters": False}


class Program:
    """`jit(fn)`, with a second way to compile it.

    `compile_soon` is for small work that Python starts: inside another program JAX takes no
    options, and calls the program itself.

    **Arguments:**

    - `small`: the multiplications up to which `at` compiles soon.
    """

    # Whether this version of XLA knows the option; found out at the first call.
    _known: ClassVar[bool] = True

    def __init__(self, fn: Callable[..., Any], jit: Any = eqx.filter_jit, small: int = 2**22):
        self._small = small
        self._program = jit(fn)
        # Equinox hands on what it does not know to `jax.jit`.
        self._soon = jit(fn, compiler_options=_QUICK)

    def __call__(self, *args: Any) -> Any:
        return self._program(*args)

    def at(self, work: int) -> Callable[..., Any]:
        """The program for a call of so many multiplications."""
        return self.compile_soon if work <= self._small else self

    def compile_soon(self, *args: Any) -> Any:
        """The same, compiled in half the time, to run a little slower."""
        if Program._known:
            try:
                return self._soon(*args)
            except jax.errors.JaxRuntimeError as error:
                if "No such compile option" not in str(error):
                    raise
                Program._known = False
        return self._program(*args)
