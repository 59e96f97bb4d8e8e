"""`python -m gmmx`, the command line."""

from gmmx_cli import main

main()
