"""`python -m pipeline.cli`: the command line, for the supervisor's children."""

from pipeline.cli import main

main()
