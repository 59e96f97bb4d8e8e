"""`python -m gmmx_cli`, which hears Ctrl-C before JAX is imported."""

from . import main

main()
