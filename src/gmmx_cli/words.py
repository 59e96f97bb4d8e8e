"""How the command line says things: the options' names, and commands that can be pasted."""

import csv
import io
import re
import shlex
import sys

# The library's messages name its arguments; here they are options.
_OPTIONS = [
    (r"in float64 \(jax\.config\.update\([^)]*\)\)", "with --dtype float64"),
    (r"call jax\.config\.update\([^)]*\)( first)?", "use --dtype float64"),
    (r"start from gmmx\.initialize\([^)]*\)", "try another --seed"),
    (r"more starts \(gmmx\.Restarts\)", "more starts (--n-init)"),
    (r" `result\.spurious` says which\.", ""),
    (r" \(The exception's `result` holds the model\.\)", ""),
    (r"\b(?<!-)(max_iter|reg_covar|n_init|tol)\b", lambda m: "--" + m[0].replace("_", "-")),
]


def of_options(message: str) -> str:
    """A message of the library with the names of the command's options."""
    for argument, option in _OPTIONS:
        message = re.sub(argument, option, message)
    return message


def say(message: str) -> None:
    """Write a message to the standard error."""
    sys.stderr.write(f"gmmx: {message}\n")


def listed(names: list[str], most: int = 12) -> str:
    """Names in quotes."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def option(name: str, columns: list[str]) -> str:
    """An option that names columns, to be pasted into a shell."""
    return f"{name} {shlex.quote(joined(columns))}"


def joined(names: list[str]) -> str:
    """Names as one text, from which `split` makes them again."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def split(text: str | None) -> list[str] | None:
    """Names from text: A,B,… A name with a comma stands in double quotes."""
    if text is None:
        return None
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
