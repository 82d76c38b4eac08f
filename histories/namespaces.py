"""Machines with a network of their own: Linux namespaces, joined by a router.

Each machine is a network namespace with one interface; a further namespace forwards between them,
as a router does. Rules of the router drop or refuse what one machine sends to another, in one
direction or both, without a word to either: TCP sends again, waits longer each time, and goes on
when the rule is removed, as between real machines. A machine whose plug is pulled has an interface
that is down. Connections are slowed by netem where the kernel has it, else by a narrow line (tbf).

That needs ``unshare``, ``nsenter`` and ``ip``, and a kernel that lets this user create namespaces:
:func:`missing` says what is not there. This process runs in namespaces, too, as the machine
``clients``: begin it with :func:`entered`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from histories.network import Address

MARK = "LIMERANK_HISTORIES_NAMESPACES"
"""Environment variable of processes in namespaces."""
PORT = 7000
"""Of the process of each machine."""
NET = "10.77"
"""Addresses: 10.77.K.1 of the router, 10.77.K.2 of the machine K, 10.77.255.S of services."""
NARROW = "rate 256kbit burst 4kb latency 2s"
"""The line of a slow machine where there is no netem: 32 kB/s."""
SECONDS = 10.0
"""Seconds that a namespace may take to exist."""
RULES = {
    "cut": ("unreachable", "blackhole"),
    "hold": ("blackhole", "blackhole"),
    "hold requests": ("blackhole", ""),
    "hold answers": ("", "blackhole"),
}
"""Disturbance -> what the router does with requests and with answers."""


class Namespaces:
    """A network of namespaces. This process has to be in one already (:func:`inside`)."""

    name, pairs = "namespaces", True

    def __init__(self) -> None:
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers: dict[str, int] = {}
        self._services: dict[str, tuple[int, str]] = {}
        self._rules: dict[tuple[str, str], list[int]] = {}
        self._next_rule = 1000
        self._slow: set[str] = set()
        self._isolated: set[str] = set()
        self.slowed_by = _slowed_by()
        closing = ("drop",) if shutil.which("ss") else ()
        self.disturbances = (*RULES, *(("slow",) if self.slowed_by else ()), *closing)

    async def start(self, machines: Sequence[str]) -> None:
        if not inside():
            raise RuntimeError("this process is not in a namespace: begin it with entered()")
        await asyncio.to_thread(self._build, machines)

    def _build(self, machines: Sequence[str]) -> None:
        router = self._holder("router")
        self._run("router", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number, machine in enumerate(machines):
            self._numbers[machine] = number
            pid = os.getpid() if machine == "clients" else self._holder(machine).pid
            self._ip(
                "router",
                f"link add r{number} type veth peer name eth{number} netns {pid}",
                f"addr add {NET}.{number}.1/30 dev r{number}",
                f"link set r{number} up",
            )
            self._ip(
                machine,
                "link set lo up",
                f"addr add {NET}.{number}.2/30 dev eth{number}",
                f"link set eth{number} up",
                f"route add {NET}.0.0/16 via {NET}.{number}.1",
            )
        assert router.poll() is None

    async def close(self) -> None:
        for holder in self._holders.values():
            holder.kill()
        for holder in self._holders.values():
            holder.wait()
        if "clients" in self._numbers:  # whose namespace remains, and is used again
            with contextlib.suppress(subprocess.CalledProcessError):
                self._ip("clients", f"link del eth{self._numbers['clients']}")

    def command(self, machine: str, command: Sequence[str]) -> list[str]:
        if machine == "clients":
            return list(command)
        return ["nsenter", f"--net=/proc/{self._holders[machine].pid}/ns/net", *command]

    def bound(self, machine: str) -> Address:
        return self._host(machine), PORT

    def listens(self, machine: str, port: int | None) -> None:
        pass  # its address says it

    async def address(self, asker: str, name: str) -> Address:
        return self._host(name), PORT

    def give(self, service: str, machine: str) -> None:
        number, _ = self._services.get(service, (1 + len(self._services), ""))
        self._services[service] = number, machine
        with contextlib.suppress(subprocess.CalledProcessError):  # it has the address already
            self._ip(machine, f"addr add {NET}.255.{number}/32 dev lo")
        self._lead(service)

    def disturb(self, asker: str, name: str, how: str) -> None:
        if how == "slow":
            self._slow_down(self._services.get(name, (0, name))[1])
        elif how == "drop":
            kill = ["ss", "--kill", "--tcp", "dst", self._host(name)]
            subprocess.run(self.command(asker, kill), check=True, stdout=subprocess.DEVNULL)
        else:
            requests, answers = RULES[how]
            here, there = self._host(asker), self._host(name)
            for source, target, what in ((here, there, requests), (there, here, answers)):
                if what:
                    self._next_rule += 1
                    rule = f"rule add priority {self._next_rule} from {source} to {target} {what}"
                    self._ip("router", rule)
                    self._rules.setdefault((asker, name), []).append(self._next_rule)

    def heal(self, asker: str, name: str) -> None:
        rules = self._rules.pop((asker, name), [])
        if rules:
            self._ip("router", *(f"rule del priority {one}" for one in rules))
        machine = self._services.get(name, (0, name))[1]
        if machine in self._slow:
            self._slow.remove(machine)
            self._run("router", *f"tc qdisc del dev r{self._numbers[machine]} root".split())

    def isolate(self, machine: str) -> None:
        self._isolated.add(machine)
        self._ip("router", f"link set r{self._numbers[machine]} down")

    def rejoin(self, machine: str) -> None:
        if machine in self._isolated:
            self._isolated.remove(machine)
            self._ip("router", f"link set r{self._numbers[machine]} up")
            for service, (_, at) in self._services.items():
                if at == machine:
                    self._lead(service)

    def delay(self, asker: str, name: str) -> None:
        pass  # a replica is as late as it is

    def _slow_down(self, machine: str) -> None:
        """Slow what is sent to a machine, by anybody."""
        if machine not in self._slow:
            self._slow.add(machine)
            how = "netem delay 150ms" if self.slowed_by == "netem" else f"tbf {NARROW}"
            self._run("router", *f"tc qdisc add dev r{self._numbers[machine]} root {how}".split())

    def _lead(self, service: str) -> None:
        """Let packets to a service leave the router where its machine is."""
        number, machine = self._services[service]
        at = self._numbers[machine]
        if machine not in self._isolated:
            self._ip("router", f"route replace {NET}.255.{number} via {NET}.{at}.2 dev r{at}")

    def _host(self, name: str) -> str:
        if name in self._services:
            return f"{NET}.255.{self._services[name][0]}"
        return f"{NET}.{self._numbers[name]}.2"

    def _holder(self, machine: str) -> subprocess.Popen[bytes]:
        """A process that does nothing but have a namespace; it ends with this process."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holders[machine] = holder
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError("unshare creates no network namespace: use --network proxies")
        return holder

    def _run(self, machine: str, *command: str, text: str = "") -> None:
        subprocess.run(
            self.command(machine, command), input=text.encode(), check=True, capture_output=True
        )

    def _ip(self, machine: str, *lines: str) -> None:
        self._run(machine, "ip", "-batch", "-", text="".join(f"{one}\n" for one in lines))


def inside() -> bool:
    """Whether this process was started by :func:`entered`."""
    return MARK in os.environ


def entered(arguments: Sequence[str]) -> list[str]:
    """The command that runs Python with these arguments in namespaces of its own."""
    return ["unshare", "--user", "--map-root-user", "--net", "env", f"{MARK}=1", sys.executable,
            *arguments]  # fmt: skip


@functools.cache
def missing() -> str:
    """Why there can be no network of namespaces; empty where there can."""
    if sys.platform != "linux":
        return f"namespaces are a part of Linux, this is {sys.platform}"
    for program in ("unshare", "nsenter", "ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no program {program}: install util-linux and iproute2"
    done = subprocess.run(
        entered(["-m", "histories.namespaces"]),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


@functools.cache
def _slowed_by() -> str:
    """netem or tbf, whichever this kernel has first; empty: neither."""
    for name, how in (("netem", "netem delay 1ms"), ("tbf", f"tbf {NARROW}")):
        command = f"tc qdisc add dev lo root {how} && tc qdisc del dev lo root"
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", f"ip link set lo up && {command}"],
            check=False,
            capture_output=True,
        )
        if done.returncode == 0:
            return name
    return ""


JOINED = 10.0
"""Seconds in which machines that are joined answer: a busy computer may need some."""


async def trial() -> None:
    """Two machines connect, are separated, and are joined again; a service changes its machine.

    Raises:
        RuntimeError: they do not.
    """
    network, listening, found = Namespaces(), [], []
    try:
        await network.start(["clients", "server 0", "server 1"])
        for machine in ("server 0", "server 1"):
            code = LISTENING.format(machine.encode(), network.bound(machine)[1])
            command = network.command(machine, [sys.executable, "-S", "-c", code])
            pipe = subprocess.PIPE
            listening.append(subprocess.Popen(command, stdin=pipe, stdout=pipe))
            assert listening[-1].stdout is not None
            listening[-1].stdout.readline()
        network.give("service", "server 0")
        for name in ("server 0", "service"):
            address = await network.address("clients", name)
            found.append(_answer(address, JOINED))
            network.disturb("clients", name, "hold")
            found.append(_answer(address))
            network.heal("clients", name)
            found.append(_answer(address, JOINED))
        network.give("service", "server 1")
        found.append(_answer(address, JOINED))
        network.isolate("server 1")
        found.append(_answer(address))
        network.rejoin("server 1")
        found.append(_answer(address, JOINED))
    finally:
        for one in listening:
            one.kill()
            one.communicate()
        await network.close()
    expected = [*2 * ["server 0", "", "server 0"], "server 1", "", "server 1"]
    if found != expected:
        raise RuntimeError(f"machines in namespaces answer {found}, expected {expected}")


LISTENING = """
import socket
one = socket.create_server(("", {1}))
print(flush=True)
while True:
    connection, _ = one.accept()
    connection.sendall({0!r})
    connection.close()
"""
"""A program that answers with its name."""


def _answer(address: Address, seconds: float = 0.0) -> str:
    """Who answers at an address; empty: nobody within some tenths of a second, or within so many
    seconds, in which connections are tried again."""
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(address, timeout=0.3) as one:
                return one.recv(100).decode()
        except OSError:
            if time.monotonic() > until:
                return ""
        time.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(trial())
