"""``python -m limerank`` is the command line."""

from limerank.cli import main

main()
