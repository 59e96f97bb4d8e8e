"""Beartype, for jaxtyping's import hook."""

from typing import Any, Self

from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 has it.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(fn):
    """`fn` with its annotations checked at every call.

    The hook decorates methods one by one, where beartype cannot know what `Self` is, nor the
    names that a module imports for the type checker alone, since they would be circular.
    """
    hints = fn.__annotations__
    hints.update({n: Any for n, hint in hints.items() if hint is Self or isinstance(hint, str)})
    return _beartype(fn)
