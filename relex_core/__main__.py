"""`python -m relex_core`: the command line."""

from relex_core.cli import main

main()
