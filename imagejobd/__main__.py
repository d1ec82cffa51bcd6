"""`python -m imagejobd`."""

from imagejobd.cli import main

main(prog_name="imagejobd")
