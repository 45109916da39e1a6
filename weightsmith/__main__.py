"""`python -m weightsmith` is the `weightsmith` command."""

from weightsmith.cli import main

main()
