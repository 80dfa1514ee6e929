"""`python -m gemelo` is `gemelo`."""

from gemelo.cli import main

main()
