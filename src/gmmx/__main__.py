"""The command line, as `python -m gmmx`."""

from gmmx_cli import main

main()
