"""What the sandbox counts: messages, duplicates, connections as the client sees them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from mta.sandbox.client import Received, Sandbox
from mta.sandbox.ledger import Ledger, Presence
from tests.sandbox.helpers import Smtp, content


class Visitor:
    """A session for `Presence`."""

    def __init__(self, presence: Presence) -> None:
        self.presence = presence
        self.left = False

    def has_left(self) -> bool:
        return self.left

    def leave(self) -> None:
        self.presence.sessions.discard(self)


def test_presence_does_not_count_those_who_have_left() -> None:
    """The most at once is exact even when an end was not read yet; a reset counts from those who are here."""
    presence = Presence()
    visitors = [Visitor(presence) for _ in range(5)]
    for visitor in visitors[:3]:
        presence.enter(visitor)
    visitors[0].left = True
    presence.enter(visitors[3])
    assert (presence.maximum, presence.total) == (3, 4)
    presence.enter(visitors[4])
    assert presence.maximum == 4
    visitors[1].left = True
    assert presence.sweep() == 3
    presence.reset()
    assert (presence.maximum, presence.total) == (3, 3)


def test_ledger_forgets_the_oldest_and_says_so() -> None:
    """Memory for pairs is bounded; duplicates among those remembered are found, what was forgotten is counted."""
    ledger = Ledger(remember=1000, log=0)
    counts = ledger.domain("d.test")
    for number in range(1600):
        ledger.accept(b"%d" % number, [(b"u@d.test", counts)], 10)
    assert ledger.totals.distinct == 1600
    assert ledger.totals.forgotten == 1000
    assert sum(len(portion) for portion in ledger.received()) == 600
    ledger.accept(b"1599", [(b"u@d.test", counts)], 10)
    assert (ledger.totals.duplicates, counts.duplicates) == (1, 1)
    assert ("1599", "u@d.test", 2) in [item for portion in ledger.received() for item in portion]


def test_messages_count_once_per_domain() -> None:
    """Recipients of several domains, mixed, make one message for each domain and one in all."""
    ledger = Ledger(remember=1000, log=0)
    a, b = ledger.domain("a.test"), ledger.domain("b.test")
    ledger.accept(b"k", [(b"1@a.test", a), (b"1@b.test", b), (b"2@a.test", a)], 7)
    assert (ledger.totals.messages, a.messages, b.messages) == (1, 1, 1)
    assert (ledger.totals.recipients, a.recipients, b.recipients) == (3, 2, 1)
    assert (a.octets, b.octets) == (7, 7)


def test_duplicates_by_key_and_recipient() -> None:
    """The same key to the same recipient is a duplicate; another recipient or key is not. The stream is exact."""
    with Sandbox() as sandbox:
        with Smtp(sandbox, "mx1.d.test") as client:
            client.hello()
            sent = [("a", "u"), ("a", "v"), ("b", "u"), ("a", "u"), ("a", "u")]
            for key, user in sent:
                assert client.deliver(f"{user}@d.test", key)[-1] == 250
        stats = sandbox.stats()
        assert (stats["messages"], stats["distinct_messages"]) == (5, 2)
        assert (stats["recipients"], stats["distinct"], stats["duplicates"]) == (5, 3, 2)
        expected = Counter((key, f"{user}@d.test") for key, user in sent)
        assert sorted(sandbox.received(), key=repr) == sorted(
            (Received(key, recipient, count) for (key, recipient), count in expected.items()), key=repr)
        sandbox.reset()
        assert sandbox.received() == []
        assert sandbox.stats()["messages"] == 0
        assert sandbox.domain("d.test")["messages"] == 0


@pytest.mark.parametrize(("header", "key"), [
    (b"Message-ID: <a@b>\r\nX-Test-Id: 7\r\n", "7"),
    (b"x-test-ID:  7 \r\n", "7"),
    (b"Message-Id:\r\n <folded@b>\r\nSubject: x\r\n", "<folded@b>"),
    (b"Subject: Message-ID: no\r\n", "body:"),
    (b"Subject: no\r\n\r\nMessage-ID: <in-the-body@b>\r\n", "body:"),
])
def test_key_of_a_message(sandbox: Sandbox, header: bytes, key: str) -> None:
    """The key is the first X-Test-Id, else the Message-ID, else a hash of the body."""
    with Smtp(sandbox, "mx1.key.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@key.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(3)] == [250, 250, 354]
        client.send(header + b"\r\nbody\r\n.\r\n")
        assert client.code() == 250
    found = sandbox.log()[-1]["key"]
    assert found == key or (key == "body:" and found.startswith(key) and len(found) > 20)


def test_most_connections_at_once(sandbox: Sandbox) -> None:
    """A client that closes one connection and opens the next never has one more than it has."""
    held = [Smtp(sandbox, "mx1.three.test") for _ in range(2)]
    for _ in range(30):
        with Smtp(sandbox, "mx1.three.test") as client:
            assert client.code() == 220
    for client in held:
        client.close()
    counts = sandbox.domain("three.test")
    assert (counts["connections"], counts["max_open"]) == (32, 3)
    assert sandbox.wait_for(lambda stats: bool(stats["open"] == 0))["connections"] >= 32


def test_connections_by_domain_where_hosts_are_shared(sandbox: Sandbox) -> None:
    """On a host of several domains a connection counts for a domain from its first recipient there."""
    for name in ("one.shared.test", "two.shared.test"):
        sandbox.set(name, {"dns": {"mx": ["10 in.shared.example"]}})
    with Smtp(sandbox, "in.shared.example") as client:
        client.hello()
        assert client.deliver("u@one.shared.test")[-1] == 250
        assert (sandbox.domain("one.shared.test")["open"], sandbox.domain("two.shared.test")["open"]) == (1, 0)
        assert client.deliver("u@two.shared.test")[-1] == 250
        assert (sandbox.domain("one.shared.test")["open"], sandbox.domain("two.shared.test")["open"]) == (1, 1)
    assert sandbox.sites()["one.shared.test"]["connections"] == 1


def test_waiting_for_counts(sandbox: Sandbox) -> None:
    """`wait` comes back when a count is reached, not before, and says what was missing when time is over."""
    def deliver() -> None:
        with Smtp(sandbox, "mx1.waited.test") as client:
            client.hello()
            for _ in range(3):
                client.deliver("u@waited.test")

    thread = threading.Timer(0.1, deliver)
    thread.start()
    counts = sandbox.wait({"messages": 3}, domain="waited.test", timeout_s=60)
    assert counts["messages"] == 3
    thread.join()
    with pytest.raises(TimeoutError, match="'messages': 3"):
        sandbox.wait({"messages": 4}, domain="waited.test", timeout_s=0.05)


def test_abandoned_transactions(sandbox: Sandbox) -> None:
    """A client that goes in the middle of a message has delivered nothing."""
    with Smtp(sandbox, "mx1.left.test") as client:
        client.hello()
        for line in ("MAIL FROM:<a@x.test>", "RCPT TO:<u@left.test>", "DATA"):
            client.say(line)
        client.send(content("half"))
    sandbox.wait_for(lambda stats: bool(stats["open"] == 0))
    assert sandbox.log()[-1]["end"] == "abandoned"
    assert sandbox.domain("left.test")["messages"] == 0


def test_message_counts_when_the_client_is_gone_before_the_reply(sandbox: Sandbox) -> None:
    """What is accepted counts, whether or not the client hears of it."""
    sandbox.set("late.test", {"latency": "100ms"})
    with Smtp(sandbox, "mx1.late.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@late.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(3)] == [250, 250, 354]
        client.send(content("late") + b".\r\n")
    assert sandbox.wait({"messages": 1}, domain="late.test")["messages"] == 1


def test_capture(tmp_path: Path) -> None:
    """Accepted messages become files of a Maildir, with the envelope before the header section."""
    with Sandbox(capture=str(tmp_path)) as sandbox, Smtp(sandbox, "mx1.kept.test") as client:
        client.hello()
        client.deliver("u@kept.test", "c1", body=b"..\r\n")
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 1
    assert files[0].read_bytes() == b"X-Sender: <s@x.test>\r\nX-Receiver: <u@kept.test>\r\n" + content("c1", b".\r\n")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_many_sessions_at_once() -> None:
    """Hundreds of sessions at once on as many hosts, beyond the number that get an address of their own."""
    with Sandbox({"hosts": 50}) as sandbox:
        addresses = {sandbox.address(f"mx1.d{number}.test") for number in range(80)}
        assert len(addresses) == 50
        clients = [Smtp(sandbox, f"mx1.d{number % 80}.test") for number in range(300)]
        for number, client in enumerate(clients):
            client.hello()
            assert client.deliver(f"u@d{number % 80}.test", str(number))[-1] == 250
        assert sandbox.stats()["max_open"] == 300
        for client in clients:
            client.close()
        assert len(sandbox.domains()) == 80
        assert sandbox.domain("d79.test")["messages"] == 3


def test_the_sandbox_ends_with_whoever_started_it() -> None:
    """It reads its standard input and stops at its end, so that nothing is left behind by a killed test."""
    sandbox = Sandbox()
    assert sandbox.process.stdin is not None
    sandbox.process.stdin.close()
    assert sandbox.process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", sandbox.smtp_port), 5)
    assert "0 messages" in sandbox.stop()


def test_only_loopback_is_listened_on(sandbox: Sandbox) -> None:
    """No socket of the sandbox is reachable from outside."""
    sandbox.address("mx1.inside.test")
    inodes = set()
    for entry in os.scandir(f"/proc/{sandbox.process.pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:  # closed in the meantime
            continue
        if target.startswith("socket:"):
            inodes.add(target[8:-1])
    rows = [line.split() for name in ("tcp", "tcp6", "udp", "udp6")
            for line in Path(f"/proc/{sandbox.process.pid}/net/{name}").read_text().splitlines()[1:]]
    local = [row[1] for row in rows if row[9] in inodes]
    assert len(local) > 3
    for address in local:
        assert address.partition(":")[0].endswith("7F") or address.startswith("00000000000000000000000001000000:")


def test_time_of_the_first_and_last_message(sandbox: Sandbox) -> None:
    """The span of acceptance is known by the monotonic clock, which other processes share."""
    before = time.monotonic()
    with Smtp(sandbox, "mx1.clock.test") as client:
        client.hello()
        client.deliver("u@clock.test")
    stats = sandbox.stats()
    assert before <= stats["last_at"] <= time.monotonic()
    assert stats["first_at"] <= stats["last_at"]
