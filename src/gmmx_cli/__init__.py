"""The command `gmmx`.

A package beside the library, since whatever stands inside it can only be imported with JAX, and
help should not take a second. It uses the library as any other program would.
"""

import sys
import warnings
from typing import Any


def main() -> None:
    """Run the command. Exit status 0: done; 1: the fit failed; 2: bad data, files or usage."""
    warnings.showwarning = _show_warning
    try:
        from .commands import app

        app(prog_name="gmmx")
    except ModuleNotFoundError as error:
        if error.name not in ("polars", "typer"):
            raise
        _end(2, f'the command line needs {error.name}: pip install "gmmx[cli]"')
    # What the library and the system say of a caller's mistake, whose messages are for people.
    except ValueError as error:
        _end(2, str(error))
    except OSError as error:
        # Without the system's number, which is for programs.
        said = [str(part) for part in (error.filename, error.strerror) if part]
        _end(2, ": ".join(said) or str(error))
    except RuntimeError as error:
        from gmmx import FitError

        if not isinstance(error, FitError):
            raise
        _end(1, str(error).removesuffix(" (The exception's `result` holds the model.)"))


def _end(status: int, message: str) -> Any:
    sys.stderr.write(f"gmmx: {message}\n")
    sys.exit(status)


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"gmmx: {message}\n")
