"""What every test starts from: fixed threads, fixed seeds, and no luck with unwritten memory."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Threads that wait by spinning starve each other on a busy machine; torch reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


import hypothesis
import pytest
import torch

# The native scorer of another build, such as one with sanitizers, instead of the installed one.
if "LIMERANK_NATIVE" in os.environ:
    (built,) = Path(os.environ["LIMERANK_NATIVE"]).glob("_native*.so")
    spec = importlib.util.spec_from_file_location("limerank.kernels._native", built)
    assert spec is not None and spec.loader is not None
    sys.modules["limerank.kernels._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["limerank.kernels._native"])

# Sums over threads are taken in an order that depends on their number: the same one everywhere.
torch.set_num_threads(1)

# No deadline: a slow machine is not a wrong answer. Examples come from the test, not from a clock.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture
def start():  # type: ignore[no-untyped-def]
    """Starts server processes, see :class:`tests.running.Running`; ends what is left of them."""
    from tests.running import Running

    running: list[Running] = []

    def begin(*given, **more):  # type: ignore[no-untyped-def]
        running.append(Running(*given, **more))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


@pytest.fixture
def files_of_at_most():  # type: ignore[no-untyped-def]
    """A context in which files of this process take so many bytes, as on a full disk (EFBIG)."""
    import resource

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def s3_server():  # type: ignore[no-untyped-def]
    """A server of the S3 protocol, shared by the tests of a process."""
    from tests.s3_server import server

    with server() as running:
        yield running


@pytest.fixture
def s3(s3_server, monkeypatch):  # type: ignore[no-untyped-def]
    """The server, which ``s3://`` means in this test; buckets are of the test."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from one seed, so that its result does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill uninitialised tensors with NaN (integers with their maximum), marked tests and kernels.

    An output that a kernel forgets to write then cannot pass by chance. It takes torch's
    deterministic mode, which changes the choice of some operations: hence not in every test, or
    the others would show what holds in that mode only.
    """
    kernels = request.path.name.startswith("test_kernels")
    if not kernels and request.node.get_closest_marker("poison") is None:
        yield
        return
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torch's own default, set here since the test depends on it.
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command as a shell would: (exit status, standard output, standard error)."""

    from limerank.cli import main as cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["limerank", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
