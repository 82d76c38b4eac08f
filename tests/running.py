"""A server as a process, started by the command, for tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

from tests.catalogues import shop

START = 1_700_000_000_000


class Running:
    """A server process and its address; ``more``: further options of the command, which win."""

    def __init__(self, location, *more, env=None, limits=None):
        of = shop("lime-mha")
        if not (location / "index").exists():
            shutil.copytree(of.index.path, location / "index")
        command = [sys.executable, "-m", "limerank", "serve", "--port", "0", "--run", of.run.path]
        command += ["--index", location / "index", "--store", location / "events.db", *more]
        self.log = open(location / "log", "a", encoding="utf-8")  # noqa: SIM115  # closed by stop
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=location,
            env=os.environ | (env or {}),
            preexec_fn=limits,  # noqa: PLW1509  # sets a limit and no more
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, (location / "log").read_text())
        self.url = found[0]

    def stop(self, how=signal.SIGTERM):
        """End it; returns the exit status."""
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()
        return code


def event(user, location):
    """The ``location``-th of a row of different events."""
    return {
        "user": user,
        "item": 1 + location % 80,
        "time": START + 1000 * location,
        "labels": {"click": 1},
        "id": str(location),
    }
