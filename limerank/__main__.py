"""``python -m limerank`` is the command line."""

from limerank.cli.main import main

main()
