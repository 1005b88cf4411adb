"""Hundreds of clients that mean no good, from one address: legitimate mail passes, and what they are given is bounded.

Facts, not times: what they are told, what others may send meanwhile, memory, and what is written. `bench/floods.py` has
the times, with thousands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta.access.users import change, entry_of
from mta.sandbox.client import Sandbox
from tests.inject.access_helpers import make_users
from tests.integration.support import Mta, message

FLOODER = "127.66.6.6"
CLIENTS = 300
PER_CLIENT = 20
WORKERS = 2
PASSWORD = "correct horse battery staple"


@pytest.fixture
def sockets() -> Iterator[Callable[..., socket.socket]]:
    """Opens connections to an MTA from an address; all are closed at the end."""
    with contextlib.ExitStack() as ends:
        def connect(mta: Mta, source: str = FLOODER) -> socket.socket:
            return ends.enter_context(socket.create_connection(mta.smtp, timeout=30, source_address=(source, 0)))

        yield connect


def reply(sock: socket.socket) -> bytes:
    """The next reply; empty at the end of the connection."""
    got = b""
    try:
        while not (got.endswith(b"\r\n") and got.splitlines()[-1][3:4] != b"-"):
            data = sock.recv(4096)
            if not data:
                break
            got += data
    except ConnectionResetError:
        pass  # we had said more than it wanted to hear
    return got


def say(sock: socket.socket, line: bytes) -> bytes:
    """A command, and what is answered."""
    sock.sendall(line + b"\r\n")
    return reply(sock)


def refusals(mta: Mta, what: str) -> list[dict[str, object]]:
    """The events of refused sessions, logins or mail."""
    lines = mta.command("events", "--event", "refused", "--json").splitlines()
    return [event for event in map(json.loads, lines) if event["what"] == what]


def memory(mta: Mta) -> int:
    """Memory of their own that all workers have together, bytes."""
    total = 0
    for pid in mta.children()["worker"]:
        status = Path("/proc", str(pid), "status").read_text()
        total += next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
    return total


def test_a_flood_of_connections_from_one_address(
        make_mta: Callable[..., Mta], sandbox: Sandbox, sockets: Callable[..., socket.socket]) -> None:
    """At each worker it may have so many sessions; the others are told 421 at once. Others send as if nothing was, and
    two events for each worker tell of all of it."""
    mta = make_mta(workers=WORKERS, smtp={"sessions_per_client": PER_CLIENT})
    mta.start()
    greeted = Counter(reply(sockets(mta))[:9] for _ in range(CLIENTS))
    let_in = sum(count for words, count in greeted.items() if words.startswith(b"220 "))
    assert PER_CLIENT <= let_in <= WORKERS * PER_CLIENT
    assert greeted[b"421 4.7.0"] == CLIENTS - let_in

    for number in range(20):
        mta.send("a@client.test", [f"u{number}@d.test"], message(number, f"u{number}@d.test"))
    sandbox.wait_for(lambda stats: bool(stats["messages"] == 20))
    mta.stop()
    told = refusals(mta, "session")
    assert sum(int(str(event["count"])) for event in told) == CLIENTS - let_in
    assert len(told) <= 2 * WORKERS
    assert {(event["client"], event["text"]) for event in told} == {
        (FLOODER, "too many sessions from this address")}
    assert len([line for line in mta.log if "refused: a session" in line]) == len(told)


def test_content_of_many_is_bounded(
        make_mta: Callable[..., Mta], sandbox: Sandbox, sockets: Callable[..., socket.socket]) -> None:
    """Three hundred clients begin to send 300 KB each and do not end: what there is no room for is told 452, memory
    stays near its bound, and mail passes when they are gone."""
    room, size = 8_000_000, 300_000
    mta = make_mta(workers=WORKERS, memory={"receiving": f"{room}B"}, smtp={"message_size": "1MB"})
    mta.start()
    before = memory(mta)
    told: Counter[bytes] = Counter()
    crowd = [sockets(mta, f"127.66.6.{number % 200 + 1}") for number in range(CLIENTS)]
    for sock in crowd:
        reply(sock)
        say(sock, b"EHLO stranger.test")
        answer = say(sock, b"MAIL FROM:<a@client.test> SIZE=%d" % size)[:9]
        told[answer] += 1
        if answer.startswith(b"250"):
            say(sock, b"RCPT TO:<b@d.test>")
            assert say(sock, b"DATA").startswith(b"354")
            sock.sendall((b"x" * 98 + b"\r\n") * (size // 100 - 10))
    taken = told[b"250 2.1.0"]
    assert room // size <= taken <= WORKERS * room // size
    assert told == {b"250 2.1.0": taken, b"452 4.3.1": CLIENTS - taken}
    assert memory(mta) - before < 2 * WORKERS * room + CLIENTS * 50_000

    for sock in crowd:
        sock.close()
    mta.wait_until(lambda: not sum(worker["sessions"] for worker in mta.status()["workers"]), "the end of the crowd")
    mta.send("a@client.test", ["u1@d.test"], message(1, "u1@d.test"))
    sandbox.wait_for(lambda stats: bool(stats["messages"] == 1))


def test_guesses_count_over_all_workers(
        make_mta: Callable[..., Mta], tmp_path: Path, sockets: Callable[..., socket.socket]) -> None:
    """An address that failed five times is told 421 by each worker, others log in; passwords are written nowhere."""
    listener = {"smtp": "127.0.0.1:0", "auth": "required", "auth_without_tls": True}
    mta = make_mta(workers=WORKERS, listeners=[listener], access={
        "users_file": make_users(tmp_path / "users", acme=PASSWORD), "failures": 5, "failure_delay": 0})
    mta.start()
    # All are there before the first guess, until each worker has some of them: the others let a worker that stands
    # still for a moment go first for a moment only.
    guessers: list[socket.socket] = []
    while not guessers or sum(bool(worker["sessions"]) for worker in mta.status()["workers"]) < WORKERS:
        assert len(guessers) < 20 * 20
        crowd = [sockets(mta) for _ in range(20)]
        for sock in crowd:
            assert reply(sock).startswith(b"220")
        guessers += crowd
    told = []
    for number, sock in enumerate(guessers):
        say(sock, b"EHLO stranger.test")
        guess = base64.b64encode(b"\0acme\0secret%d" % number)
        told.append(say(sock, b"AUTH PLAIN " + guess)[:9])
    assert told == [b"535 5.7.8"] * 5 + [b"421 4.7.0"] * (len(guessers) - 5)

    friend = sockets(mta, "127.0.0.2")
    reply(friend)
    say(friend, b"EHLO friend.test")
    assert say(friend, b"AUTH PLAIN " + base64.b64encode(b"\0acme\0" + PASSWORD.encode())).startswith(b"235")
    mta.stop()
    told_of = refusals(mta, "login")
    assert sum(int(str(event["count"])) for event in told_of) == len(guessers)
    assert {(event["user"], event["client"], event["text"]) for event in told_of} == {
        ("acme", FLOODER, "wrong password"), ("acme", FLOODER, "too many failures from this address")}
    logins = [json.loads(line) for line in mta.command("events", "--event", "login", "--json").splitlines()]
    assert [(event["user"], event["client"], event["via"], event["count"]) for event in logins] == [
        ("acme", "127.0.0.2", "password", 1)]
    written = "\n".join(mta.log) + "".join(
        path.read_text() for path in (mta.directory / "spool" / "shards").glob("*/events/*"))
    for secret in ("secret", PASSWORD, base64.b64encode(b"\0acme\0secret1").decode()):
        assert secret not in written


def test_many_guesses_at_once_are_not_more_guesses(
        make_mta: Callable[..., Mta], tmp_path: Path, sockets: Callable[..., socket.socket]) -> None:
    """Forty sessions guess before the first has its answer: but for those that a thread has in hand when the address is
    closed, they are told 421 and nothing is computed for them."""
    listener = {"smtp": "127.0.0.1:0", "auth": "required", "auth_without_tls": True}
    change(str(tmp_path / "users"), lambda entries: entries.update(acme=entry_of(PASSWORD)))  # a hash of 20 ms
    mta = make_mta(workers=WORKERS, listeners=[listener], access={
        "users_file": str(tmp_path / "users"), "failures": 5, "failure_delay": 0, "threads": 1})
    mta.start()
    guessers = [sockets(mta) for _ in range(40)]
    for sock in guessers:
        reply(sock)
        say(sock, b"EHLO stranger.test")
    for number, sock in enumerate(guessers):
        sock.sendall(b"AUTH PLAIN " + base64.b64encode(b"\0acme\0secret%d" % number) + b"\r\n")
    told = Counter(reply(sock)[:9] for sock in guessers)
    assert 5 <= told[b"535 5.7.8"] <= 5 + WORKERS - 1
    assert told[b"421 4.7.0"] == 40 - told[b"535 5.7.8"]
