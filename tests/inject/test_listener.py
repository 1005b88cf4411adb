"""The SMTP listener in a real process, over real sockets on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"


class Process:
    """The process with the listener (see `listener_process.py`)."""

    def __init__(self, **settings: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/inject/listener_process.py"), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", "")},
        )  # fmt: skip
        self.port: int = self.expect("listening")[0]
        self.errors = b""

    def expect(self, name: str) -> list[Any]:
        """The next event, which must be `name`: what belongs to it."""
        assert self._process.stdout is not None
        found, *rest = json.loads(self._process.stdout.readline() or '["nothing"]')
        assert found == name
        return rest

    def tell(self, command: str) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def time_passes(self, seconds: float) -> None:
        """For its sessions, when `clock` was set."""
        self.tell(f"pass {seconds}")
        self.expect("ok")

    def heard(self) -> tuple[int, int]:
        """How many octets its sessions have read, and how often a client took no more; with `clock`."""
        self.tell("heard")
        octets, choked = self.expect("heard")
        return octets, choked

    def complaint(self) -> bytes:
        """The next line that it writes to stderr."""
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    def close(self) -> None:
        """End the process and collect what it wrote to stderr."""
        _, self.errors = self._process.communicate(timeout=20)


@contextlib.contextmanager
def listening(**settings: Any) -> Iterator[Process]:
    """A process with a listener; nothing may have been written to stderr unless the test has read it."""
    process = Process(**settings)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Process]:
    """A listener with default limits, for all tests that leave it as it was."""
    with listening() as process:
        yield process
    assert process.errors == b""


class Peer:
    """A client that says exactly what the test wants."""

    def __init__(self, process: Process, *, greet: bool = True) -> None:
        self._process = process
        self.sock = socket.create_connection(("127.0.0.1", process.port), timeout=20)
        self._file = self.sock.makefile("rb")
        if greet:
            assert self.reply() == "220 mx.example.net ESMTP"
            assert self.say("EHLO client.example").startswith("250-mx.example.net")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def reply(self) -> str:
        """One reply, its lines joined by newlines; empty at the end of the connection."""
        lines = []
        while line := self._file.readline():
            lines.append(line.decode().removesuffix("\r\n"))
            if line[3:4] == b" ":
                break
        return "\n".join(lines)

    def send(self, *lines: str | bytes) -> None:
        """Send lines in one write."""
        self.sock.sendall(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines))

    def put(self, data: bytes) -> None:
        """Send so much, and wait until the listener has read it; with `clock`."""
        wanted = self._process.heard()[0] + len(data)
        deadline = time.monotonic() + 20
        self.sock.sendall(data)
        while self._process.heard()[0] < wanted:
            assert time.monotonic() < deadline, "it is not read"

    def say(self, *lines: str | bytes) -> str:
        """Send lines in one write: the first reply."""
        self.send(*lines)
        return self.reply()

    def begin(self, sender: str = "a@example.com") -> None:
        """A transaction up to DATA."""
        assert self.say(f"MAIL FROM:<{sender}>", "RCPT TO:<b@example.org>", "DATA").startswith("250 2.1.0")
        assert self.reply().startswith("250 2.1.5")
        assert self.reply().startswith("354")

    def ended(self) -> bool:
        """Whether the server has closed the connection in good order."""
        return self.sock.recv(1) == b""


def test_messages(shared: Process) -> None:
    """Messages pipelined across one connection are handed over one by one and answered in order."""
    with Peer(shared) as peer:
        peer.begin()
        for number in range(3):
            peer.send(CONTENT + b".", f"MAIL FROM:<{number}@example.com>", "RCPT TO:<c@example.org>", "DATA")
            assert [peer.reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        assert peer.say(CONTENT + b".", "QUIT") == "250 2.0.0 Ok: queued as 1"
        assert peer.reply() == "221 2.0.0 Bye"
        assert peer.ended()
        port = peer.sock.getsockname()[1]
    for sender in ("a", "0", "1", "2"):
        got = shared.expect("message")
        assert got[0] == f"{sender}@example.com"
        assert got[2:] == [len(CONTENT), f"smtp 127.0.0.1:{port} client.example"]


def test_smtplib(shared: Process) -> None:
    """Python's own client delivers, with its dot-stuffing and its idea of line ends."""
    with smtplib.SMTP("127.0.0.1", shared.port, "client.example", timeout=20) as client:
        client.sendmail("a@example.com", ["b@example.org", "c@example.org"], "Subject: x\n\n.dots\n..\n")
    assert shared.expect("message")[:3] == [
        "a@example.com", ["b@example.org", "c@example.org"], len("Subject: x\r\n\r\n.dots\r\n..\r\n"),
    ]  # fmt: skip


def test_chunks(shared: Process) -> None:
    """Messages by BDAT, pipelined or not, are handed over as those by DATA are."""
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
    with Peer(shared) as peer:
        peer.sock.sendall(envelope + b"BDAT 7\r\nSubject" + b"BDAT %d LAST\r\n%b" % (len(CONTENT) - 7, CONTENT[7:]))
        assert [peer.reply()[:3] for _ in range(4)] == ["250"] * 4
        peer.sock.sendall(envelope + b"BDAT %d LAST\r\n" % len(CONTENT))
        assert [peer.reply()[:3] for _ in range(2)] == ["250"] * 2
        peer.sock.sendall(CONTENT)
        assert peer.reply().startswith("250 2.0.0 Ok: queued")
    for _ in range(2):
        assert shared.expect("message")[:3] == ["a@example.com", ["b@example.org"], len(CONTENT)]


def test_large_groups_stand_in_line_when_many_come_at_once() -> None:
    """A group of commands that comes when this turn of the loop is over is taken in one of the next, whole and in
    order, and what comes behind it is not read before; so is what may be for IDNA. Small ones and content do not stand
    in line."""
    with listening() as process:
        process.tell("busy")
        process.expect("ok")
        with Peer(process) as first, Peer(process) as second:
            for number, peer in enumerate((first, second)):
                recipients = [f"RCPT TO:<u{at}@d.example>" for at in range(1001)]
                peer.send(f"MAIL FROM:<{number}@example.com>", *recipients, f"BDAT {len(CONTENT)} LAST")
                peer.sock.sendall(CONTENT + b"VRFY x\r\n")
            for peer in (first, second):
                replies = [peer.reply()[:9] for _ in range(1004)]
                assert replies == ["250 2.1.0", *["250 2.1.5"] * 1000, "452 4.5.3", "250 2.0.0", "252 2.5.0"]
        for _ in range(2):
            assert len(process.expect("message")[1]) == 1000
        process.tell("turns")
        turns = process.expect("turns")
        assert turns[0] >= 2
        with Peer(process) as third:
            third.begin()
            third.say(b"x" * 900, *[b"y" * 900] * 30, ".")
        process.expect("message")
        process.tell("turns")
        assert process.expect("turns") == turns
        with Peer(process) as fourth:
            assert fourth.say("MAIL FROM:<\u00fc@b\u00fccher.example> SMTPUTF8") == "250 2.1.0 Ok"
        process.tell("turns")
        assert process.expect("turns") == [turns[0] + 1]


def test_many_addresses_beyond_ascii_in_one_packet(shared: Process) -> None:
    """They are taken in turns, and nothing of the group is lost, nor of what comes behind it meanwhile."""
    to = [f"b@b\u00fccher{number}.example" for number in range(200)]
    with Peer(shared) as peer:
        peer.send("MAIL FROM:<a@example.com> SMTPUTF8", *(f"RCPT TO:<{one}>" for one in to), "DATA")
        assert [peer.reply()[:3] for _ in range(202)] == ["250"] * 201 + ["354"]
        assert peer.say(b"Subject: x\r\n\r\nx\r\n.").startswith("250")
        assert shared.expect("message")[1] == to
        peer.send("MAIL FROM:<a@example.com> SMTPUTF8", *(f"RCPT TO:<{one}>" for one in to))
        for _ in range(5):
            peer.send(*["RSET", "NOOP"])
        assert [peer.reply()[:3] for _ in range(211)] == ["250"] * 211


def test_large_message_in_small_pieces(shared: Process) -> None:
    """Content of many reads arrives whole."""
    with Peer(shared) as peer:
        peer.begin()
        for _ in range(500):
            peer.send(b"x" * 997)
        assert peer.say(".").startswith("250")
    assert shared.expect("message")[2] == 500 * 999


def test_refused_and_failing_messages(shared: Process) -> None:
    """The reply of `submit` is the reply to the client, and the session goes on."""
    with Peer(shared) as peer:
        peer.begin("refuse@example.com")
        assert peer.say(CONTENT + b".") == "554 5.4.6 Too many hops"
        peer.begin()
        assert peer.say(CONTENT + b".").startswith("250")
    shared.expect("message")
    shared.expect("message")


def test_a_bug_costs_one_message() -> None:
    """An exception in `submit` is logged with its traceback; the client is told to try again; the session goes on."""
    with listening() as process, Peer(process) as peer:
        peer.begin("fail@example.com")
        assert peer.say(CONTENT + b".") == "451 4.3.0 Local error, try again later"
        assert peer.say("NOOP").startswith("250")
    assert b"as asked for" in process.errors


def test_no_reply_before_the_message_is_durable(shared: Process) -> None:
    """Nothing is said while the store works, and other sessions go on meanwhile."""
    with Peer(shared) as waiting, Peer(shared) as other:
        waiting.begin("hold@example.com")
        waiting.send(CONTENT + b".", "NOOP")
        shared.expect("message")
        other.begin()
        assert other.say(CONTENT + b".").startswith("250")
        shared.expect("message")
        waiting.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.sock.recv(1)
        waiting.sock.settimeout(20)
        shared.tell("release")
        assert waiting.reply().startswith("250 2.0.0 Ok: queued")
        assert waiting.reply() == "250 2.0.0 Ok"


def test_client_that_leaves(shared: Process) -> None:
    """A client may vanish anywhere; its session ends and nothing of an unfinished message is taken."""
    for said in ([], ["MAIL FROM:<a@example.com>"], ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA"]):
        with Peer(shared) as peer:
            peer.send(*said)
            if len(said) == 3:
                assert [peer.reply()[:3] for _ in said] == ["250", "250", "354"]
                peer.send(CONTENT)
    with Peer(shared) as peer:
        peer.begin("last@example.com")
        assert peer.say(CONTENT + b".").startswith("250")
    assert shared.expect("message")[0] == "last@example.com"
    deadline = time.monotonic() + 20
    while True:
        shared.tell("sessions")
        if shared.expect("sessions") == [0]:
            break
        assert time.monotonic() < deadline


def test_last_reply_is_not_lost(shared: Process) -> None:
    """When we end a session whose client still sends, the reply arrives before the connection is reset."""
    for _ in range(20):
        with Peer(shared) as peer:
            peer.send("BDAT all", b"x" * 300_000)
            assert peer.reply().startswith("521 5.5.4 ")
            assert peer.ended()


def test_no_relay_for_strangers() -> None:
    """Who is not in `relay_from` is refused."""
    with listening(relay_from=["192.0.2.0/24", "2001:db8::/32"]) as process, Peer(process) as peer:
        assert peer.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>").startswith("250")
        assert peer.reply() == "550 5.7.1 Relaying denied"


def test_reload() -> None:
    """A new configuration holds for sessions that begin after it; those there are go on as they began."""
    with listening() as process, Peer(process) as early:
        process.tell("relay 192.0.2.0/24")
        process.expect("ok")
        early.begin()
        with Peer(process) as late:
            assert late.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>").startswith("250")
            assert late.reply() == "550 5.7.1 Relaying denied"


def test_content_of_all_sessions_is_bounded() -> None:
    """What one session may hold is not there for another; it is again when the client is gone, however it went."""
    with listening(smtp={"message_size": 100_000}, receiving=100_000) as process, Peer(process) as other:
        with Peer(process) as peer:
            assert peer.say("MAIL FROM:<a@example.com> SIZE=90000", "RCPT TO:<b@example.org>", "DATA").startswith("250")
            assert [peer.reply()[:3], peer.reply()[:3]] == ["250", "354"]
            peer.send(b"x" * 500)
            assert other.say("MAIL FROM:<a@example.com> SIZE=20000").startswith("452 4.3.1 Too much mail")
        process.tell("sessions")
        while process.expect("sessions") != [1]:
            process.tell("sessions")
        assert other.say("MAIL FROM:<a@example.com> SIZE=20000").startswith("250")


def test_no_room(shared: Process) -> None:
    """A closed intake refuses MAIL, and opens again."""
    with Peer(shared) as peer:
        shared.tell("room no")
        shared.expect("ok")
        assert peer.say("MAIL FROM:<a@example.com>") == "452 4.3.1 Disk is nearly full"
        shared.tell("room yes")
        shared.expect("ok")
        assert peer.say("MAIL FROM:<a@example.com>").startswith("250")


def test_too_many_sessions() -> None:
    """One session too many is told so and closed; when another ends there is room."""
    with listening(smtp={"sessions": 3, "sessions_per_client": 2}) as process, Peer(process), Peer(process) as second:
        with Peer(process, greet=False) as third:
            assert third.reply() == "421 4.7.0 Too many sessions from your address"
            assert third.ended()
        assert second.say("QUIT").startswith("221")
        assert second.ended()
        with Peer(process) as fourth:
            assert fourth.say("NOOP").startswith("250")
    with listening(smtp={"sessions": 1}) as process, Peer(process), Peer(process, greet=False) as second:
        assert second.reply() == "421 4.3.2 Too many sessions, try again later"


def test_origin_has_the_name_that_the_client_gave_last(shared: Process) -> None:
    """A client may greet again between two messages."""
    with Peer(shared) as peer:
        for name in ("client.example", "other.example"):
            assert peer.say(f"EHLO {name}").startswith("250-")
            peer.begin()
            assert peer.say(CONTENT + b".").startswith("250")
            assert shared.expect("message")[3].endswith(f" {name}")


def test_no_file_descriptors() -> None:
    """Without descriptors a client is told to come back, and the listener comes back itself."""
    with listening() as process, Peer(process) as first:
        process.tell("exhaust")
        process.expect("ok")
        with Peer(process, greet=False) as peer:
            assert peer.reply() == "421 4.3.2 Too many sessions, try again later"
        assert first.say("NOOP").startswith("250")
        process.tell("relieve")
        process.expect("ok")
        with Peer(process) as peer:
            assert peer.say("NOOP").startswith("250")
    assert b"Too many open files" in process.errors


def test_the_spare_descriptor_is_closed_once() -> None:
    """When another thread takes the descriptor that was given up, it stays that thread's; clients wait meanwhile."""
    with listening() as process:
        process.tell("exhaust")
        process.expect("ok")
        process.tell("steal")
        process.expect("ok")
        with Peer(process, greet=False) as peer:
            assert b"Too many open files" in process.complaint()
            process.tell("relieve")
            process.expect("ok")
            assert peer.reply() == "220 mx.example.net ESMTP"
    assert b"Traceback" not in process.errors


def test_no_memory_for_a_session() -> None:
    """The client is let go, and nothing of it is counted: its place is free for the next one."""
    with listening(smtp={"sessions": 1}) as process:
        process.tell("starve")
        process.expect("ok")
        with Peer(process, greet=False) as peer:
            assert peer.ended()
        with Peer(process) as peer:
            assert peer.say("NOOP").startswith("250")
    assert b"there is no memory" in process.errors
    assert b"Traceback" not in process.errors


TIMEOUTS = {"command": 0.3, "data": 0.3, "transaction": 0.8}


def test_timeouts() -> None:
    """A client that says nothing, half a command, or half a message is ended with 421."""
    with listening(smtp={"timeouts": TIMEOUTS}, clock=True) as process:
        peers = [Peer(process) for _ in range(3)]
        peers[1].put(b"NO")
        peers[2].begin()
        peers[2].put(b"Subj")
        process.time_passes(0.31)
        for peer in peers:
            with peer:
                assert peer.reply().startswith("421 4.4.2 ")
                assert peer.ended()


@pytest.mark.parametrize(("piece", "patience_s"), [(b"O", TIMEOUTS["command"]), (b"x\r\n", TIMEOUTS["transaction"])])
def test_trickle(piece: bytes, patience_s: float) -> None:
    """Single octets in time do not renew the patience with a command, nor blocks that with the whole content."""
    with listening(smtp={"timeouts": TIMEOUTS}, clock=True) as process, Peer(process) as peer:
        if patience_s == TIMEOUTS["transaction"]:
            peer.begin()
        for _ in range(9):
            process.time_passes(0.11 * patience_s)
            peer.put(piece)  # which is read: the session goes on till then
        process.time_passes(0.02 * patience_s)
        assert peer.reply().startswith("421 4.4.2 ")
        assert peer.ended()


def test_trickle_of_chunks() -> None:
    """Nor do chunks, each of which has its reply, that with the whole content."""
    with listening(smtp={"timeouts": TIMEOUTS}, clock=True) as process, Peer(process) as peer:
        peer.say("MAIL FROM:<a@example.com>")
        peer.say("RCPT TO:<b@example.org>")
        assert peer.say("BDAT 2", "").startswith("250")
        for _ in range(9):
            process.time_passes(0.11 * TIMEOUTS["transaction"])
            assert peer.say("BDAT 2", "").startswith("250")
        process.time_passes(0.02 * TIMEOUTS["transaction"])
        assert peer.reply().startswith("421 4.4.2 ")
        assert peer.ended()


def test_patience_begins_anew_with_every_command() -> None:
    """A session that works is not ended, however long it lasts, and the store has all the time it needs."""
    with listening(smtp={"timeouts": TIMEOUTS}, clock=True) as process, Peer(process) as peer:
        for _ in range(5):
            process.time_passes(0.9 * TIMEOUTS["command"])
            assert peer.say("NOOP").startswith("250")
        peer.begin("hold@example.com")
        peer.send(CONTENT + b".")
        process.expect("message")
        process.time_passes(3600)
        process.tell("release")
        assert peer.reply().startswith("250")


def test_client_that_does_not_read() -> None:
    """A client that asks and never reads is cut off when its patience ends; others do not notice."""
    limits = {"timeouts": TIMEOUTS, "commands": 10_000_000}
    with listening(smtp=limits, clock=True) as process, Peer(process) as deaf, Peer(process) as other:
        deaf.sock.setblocking(False)
        while not process.heard()[1]:
            with contextlib.suppress(BlockingIOError):
                deaf.sock.send(b"HELP\r\n" * 10_000)
        cut_off = False
        for _ in range(100):
            process.time_passes(0.9 * TIMEOUTS["command"])
            assert other.say("NOOP").startswith("250")
            try:
                deaf.sock.send(b"HELP\r\n")
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                cut_off = True
                break
        assert cut_off


def test_stop() -> None:
    """Idle sessions end at once with 421, one in a transaction may finish it, nobody new is let in."""
    with listening() as process:
        with Peer(process) as idle, Peer(process) as busy, Peer(process) as storing:
            busy.begin()
            storing.begin("hold@example.com")
            storing.send(CONTENT + b".")
            process.expect("message")
            process.tell("stop 20")
            assert idle.reply().startswith("421 4.3.2 ")
            assert idle.ended()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", process.port), timeout=20)
            assert busy.say(CONTENT + b".", "MAIL FROM:<x@example.com>").startswith("250 2.0.0")
            assert busy.reply().startswith("421 4.3.2 ")
            assert busy.ended()
            process.expect("message")
            process.tell("release")
            assert storing.reply().startswith("250 2.0.0")
            assert storing.reply().startswith("421 4.3.2 ")
        assert process.expect("stopped")[0] < 15
    assert process.errors == b""


def test_stop_with_a_deadline() -> None:
    """A client that does not finish in time is cut off."""
    with listening() as process:
        with Peer(process) as slow:
            slow.begin()
            process.tell("stop 0.3")
            assert slow.reply().startswith("421 4.3.2 ")
            assert slow.ended()
        assert 0.25 < process.expect("stopped")[0] < 5
    assert b"1 sessions had to be cut off" in process.errors
