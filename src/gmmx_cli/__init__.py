"""The command `gmmx`.

It is a package of its own, because importing any part of `gmmx` imports JAX, and `--help` should
not take a second.
"""

import sys
import warnings
from typing import Any

from . import words
from .interrupts import ctrl_c


def main() -> None:
    """Run the command.

    Exit status: 0 for success, 1 for a failed fit, 2 for bad input, 130 for Ctrl-C.
    """
    warnings.showwarning = _show_warning
    with ctrl_c.heard():
        _run()


def _run() -> None:
    try:
        from .commands import app

        app(prog_name="gmmx")
    except ModuleNotFoundError as error:
        if error.name not in ("polars", "typer"):
            raise
        _end(2, f'the command line needs {error.name}: pip install "gmmx[cli]"')
    # Mistakes of the user: the messages of the library and of the system explain them.
    except ValueError as error:
        _end(2, str(error))
    except OSError as error:
        # Without the error number of the system.
        said = [str(part) for part in (error.filename, error.strerror) if part]
        _end(2, ": ".join(said) or str(error))
    except RuntimeError as error:
        from gmmx import FitError

        if not isinstance(error, FitError):
            raise
        _end(1, str(error))


def _end(status: int, message: str) -> Any:
    words.say(words.of_options(message))
    sys.exit(status)


def _show_warning(message: Warning | str, *_: Any) -> None:
    words.say(words.of_options(str(message)))
