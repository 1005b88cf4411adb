"""A real `mta run` that has too few descriptors: degraded, not dead, and whole again by itself."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.faults.books import assert_balanced, assert_no_bug, queued, rows
from tests.integration.support import Injector, Mta, message

ROUNDS = int(os.environ.get("MTA_FAULT_ROUNDS", "1"))
PATIENCE_S = 60.0
DOMAINS = [f"d{number}.test" for number in range(60)]
SLOW = {"latency": "100ms"}
COMPLAINTS = ("cannot accept a connection: Too many open files", "no socket for an outgoing connection: Too many",
              "no socket for a question to DNS: too many open files")
FEW = 110  # a worker holds some forty for good


def descriptors(pid: int) -> int:
    """How many a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def first_free(pid: int) -> int:
    """The lowest number that the next descriptor could have: with that as the limit there is none."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(taken) + 1)) - taken)


def lower(pid: int, to: int) -> None:
    """Let a process open no more than that many, from now on."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (to, hard))


@contextlib.contextmanager
def idlers(mta: Mta, count: int) -> Iterator[list[socket.socket]]:
    """Clients that connect, say nothing, and stay."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(mta.smtp)
            socks.append(sock)
        yield socks


def complaints(mta: Mta) -> list[str]:
    """What the log says of it."""
    return [line for line in mta.log if re.search("Too many open files|no socket|cannot accept", line)]


def assert_whole(mta: Mta, injector: Injector, sandbox: Sandbox) -> None:
    """After the end: the books, and the spool as it lies there."""
    assert_balanced(mta, injector.accepted, sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(Path(mta.config["spool"])) == []


def blamed(mta: Mta) -> list[dict[str, Any]]:
    """Events in which somebody was made to pay for it."""
    return [event for event in mta.events() if event["event"] in ("suspended", "deferred", "bounced", "expired")]


def test_a_low_limit_is_divided(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Started with few descriptors, and with far more clients and receivers than those allow: some clients are told to
    come back, none of the mail is lost or paused for it, and DNS, store and `mta queue` always find theirs."""
    for domain in DOMAINS:
        sandbox.set(domain, SLOW)
    mta = make_mta(workers=1, smtp={"sessions_per_client": 4000})
    mta.prefix = ["prlimit", f"--nofile={FEW}:{FEW}"]
    with mta:
        worker = mta.children()["worker"][0]
        with idlers(mta, 150) as idle:
            injector = Injector(mta, DOMAINS, sessions=12)
            injector.start(600 * ROUNDS)
            mta.wait_until(lambda: any(told(sock).startswith(b"421 4.3.2") for sock in idle), "a refusal", PATIENCE_S)
            assert descriptors(worker) <= FEW - 10  # what the store needs is left
            rows(mta)  # answers
            for sock in idle[::2]:
                sock.close()
            injector.wait()
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
    assert len(injector.accepted) > 0
    assert complaints(mta) == []
    assert blamed(mta) == []
    assert_whole(mta, injector, sandbox)


def told(sock: socket.socket) -> bytes:
    """What a client was told so far."""
    try:
        return sock.recv(100, socket.MSG_PEEK)
    except (BlockingIOError, OSError):
        return b""


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_none_left_for_a_while(round_: int, make_mta: Callable[..., Mta], sandbox: Sandbox, directory: Path) -> None:
    """A worker that may open nothing more for a while, with clients at the door, names to look up, sites to connect to
    and files to take: it goes on with what is open, does not spin, blames nobody, says so once. Then it recovers."""
    for domain in DOMAINS:
        sandbox.set(domain, SLOW)
    pickup = directory / "pickup"
    with make_mta(workers=1, shaping={"default": {"idle": "0s"}}, pickup=[{"directory": str(pickup)}]) as mta:
        worker = mta.children()["worker"][0]
        injector = Injector(mta, ["known.test"], sessions=4)
        injector.start(20)
        injector.wait()
        mta.wait_until(lambda: queued(mta) == 0 and sandbox.stats()["open"] == 0, "an empty queue", PATIENCE_S)
        late = Injector(mta, DOMAINS, sessions=4)
        with contextlib.ExitStack() as open_before:
            sessions = [open_before.enter_context(Session(mta)) for _ in range(4)]
            lower(worker, first_free(worker))
            for number, session in enumerate(sessions):
                for known in (True, False):
                    to = f"u@{'known.test' if known else DOMAINS[number]}"
                    session.send(10_000 + 2 * number + known, to)  # nothing is opened for that
                    late.accepted.add(10_000 + 2 * number + known)
            path = pickup / "tmp" / "20000.eml"
            head = b"X-Sender: a@client.test\r\nX-Receiver: u@known.test\r\n"
            path.write_bytes(head + message(20_000, "u@known.test"))
            path.rename(pickup / path.name)
            late.accepted.add(20_000)
            with idlers(mta, 20):
                late.start(200)
                mta.wait_until(lambda: all(any(why in line for line in mta.log) for why in COMPLAINTS), "complaints")
                before, since = mta.cpu_s(), time.monotonic()
                time.sleep(2.0)  # a span over which the CPU is measured
                share = (mta.cpu_s() - before) / (time.monotonic() - since)
            assert share < 0.3, f"{share:.0%} of a core while nothing can be done"
            assert sandbox.stats()["distinct"] == 20
            assert mta.children()["worker"] == [worker]
            lower(worker, 1000)
        late.wait()
        mta.wait_until(lambda: queued(mta) == 0 and not list(pickup.glob("*.eml")), "an empty queue", PATIENCE_S)
        assert mta.children()["worker"] == [worker]
    assert len(late.accepted) > 100
    assert list((pickup / "failed").iterdir()) == []
    told = complaints(mta)
    assert len(told) <= 3 * len(COMPLAINTS), told
    assert blamed(mta) == []
    injector.accepted |= late.accepted
    assert_whole(mta, injector, sandbox)


class Session:
    """An SMTP session that stays open."""

    def __init__(self, mta: Mta) -> None:
        self._sock = socket.create_connection(mta.smtp, PATIENCE_S)
        self._lines = self._sock.makefile("rb")
        assert self._lines.readline().startswith(b"220")
        self._say(b"HELO x.test", b"250")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._sock.close()

    def _say(self, command: bytes, answer: bytes) -> None:
        self._sock.sendall(command + b"\r\n")
        line = self._lines.readline()
        assert line.startswith(answer), line

    def send(self, number: int, to: str) -> None:
        """One message."""
        self._say(b"MAIL FROM:<>", b"250")
        self._say(f"RCPT TO:<{to}>".encode(), b"250")
        self._say(b"DATA", b"354")
        self._say(message(number, to) + b".", b"250")
