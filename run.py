"""Commands for a clone. Each one installs the clone into `.venv` first, if necessary.

    python3 run.py gmmx [...]     the command line, with its arguments, in the current folder
    python3 run.py demo           fit the handwritten digits; print a table and draw a picture
    python3 run.py test [...]     run the tests; further arguments go to pytest
    python3 run.py check          check style, formatting and types
    python3 run.py docs           build the documentation into site/, and check its links

All but `gmmx` run in the folder of the clone. They need only Python 3.11 or newer and pip, and
install nothing outside the clone. Compiled programs are kept in the user's cache folder, unless the
environment variable GMMX_CACHE is 0.
"""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# For each command the extras of pyproject.toml that it needs, and the programs that it runs.
COMMANDS = {
    # With -P no file of the current folder is imported.
    "gmmx": ("cli,plot,sklearn", [["-P", "-m", "gmmx_cli"]]),
    "demo": ("cli,plot,sklearn", [["examples/first_fit.py"]]),
    "test": ("test", [["-m", "pytest"]]),
    "check": (
        "dev",
        [
            ["-m", "ruff", "check"],
            ["-m", "ruff", "format", "--check"],
            ["-m", "pyright"],
        ],
    ),
    "docs": ("docs", [["-m", "mkdocs", "build", "--strict"]]),
}


def install(extra):
    """Install the clone into .venv, unless this was done since pyproject.toml last changed."""
    recipe = [sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(encoding="utf-8")]
    digest = hashlib.sha256("\n".join(recipe).encode()).hexdigest()
    stamp = VENV / f"installed-{extra.replace(',', '-')}"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    print(f"Installing gmmx[{extra}] into {VENV} ...", flush=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    has_pip = PYTHON.exists() and subprocess.run([*pip, "--version"], capture_output=True)
    if not has_pip or has_pip.returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    subprocess.run([*pip, "install", "--quiet", "--editable", f"{ROOT}[{extra}]"], check=True)
    stamp.write_text(digest)


def main(arguments):
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 2
    if sys.version_info < (3, 11):
        print("gmmx needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")
        return 2
    extra, programs = COMMANDS[arguments[0]]
    try:
        install(extra)
    except subprocess.CalledProcessError as error:
        print("The installation into .venv failed, see above.", file=sys.stderr)
        return error.returncode
    # The program answers Ctrl-C; by default Python would kill it after a moment.
    signal.signal(signal.SIGINT, lambda *_: None)
    folder = None if arguments[0] == "gmmx" else ROOT
    codes = [
        subprocess.run([str(PYTHON), *program, *arguments[1:]], cwd=folder, check=False).returncode
        for program in programs
    ]
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
