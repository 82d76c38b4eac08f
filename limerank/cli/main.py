"""The entry point of ``limerank`` and of ``python -m limerank``."""

from __future__ import annotations

import os
import sys

from limerank.cli import errors
from limerank.cli.app import app


def main() -> None:
    """Run the command line; how commands end: :mod:`limerank.cli.errors`."""
    # Threads that wait by spinning halt a job whenever anything else runs on its cores; what reads
    # this is loaded later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="limerank")
    except KeyboardInterrupt:  # before any command began
        print("interrupted", file=sys.stderr)
        sys.exit(errors.INTERRUPTED)


if __name__ == "__main__":
    main()
