"""What users of a listener may do: senders, sizes, numbers of messages and sessions; a real process and clients."""

from __future__ import annotations

import json
from typing import Any

from tests.inject.access_helpers import Pki, configuration
from tests.inject.submitting import RIGHT, TLS, client, refusal, submission
from tests.inject.test_listener import CONTENT, Peer, listening


def test_checks_of_user_and_listener(pki: Pki, users: str) -> None:
    """What a listener changes in `checks`, changed by the user; of one who did not log in, by the listener alone."""
    listener = {**TLS, "relay_from": "127.0.0.0/8", "checks": {"repeated": "warn", "missing_from": "warn"}}
    user = {"checks": {"repeated": "accept", "from_domains": "acme.example"}}
    with submission(pki, users, listener, users={"acme": user}) as process, client(process, pki) as smtp:
        smtp.sendmail("a@acme.example", ["b@example.org"], CONTENT)
        process.expect("message")
        process.tell("checks")
        assert process.expect("checks") == [["warn", "warn"]]
        smtp.login("acme", "secret")
        smtp.sendmail("a@acme.example", ["b@example.org"], CONTENT)
        process.expect("message")
        process.tell("checks")
        assert process.expect("checks") == [["accept", "warn", "acme.example"]]


def test_senders_of_a_user(pki: Pki, users: str) -> None:
    """A user sends in its own names alone; the null sender is everybody's."""
    rights = {"acme": {"senders": ["acme.example", "*.sub.example", "News@other.example"]}}
    with submission(pki, users, users=rights) as process, client(process, pki) as smtp:
        smtp.login("acme", "secret")
        for sender, allowed in (
            ("x@acme.example", True), ("x@ACME.example", True), ("", True), ("x@a.b.sub.example", True),
            ("news@other.example", True), ('"news"@other.example', True),
            ("x@sub.example", False), ("x@evil.acme.example", False), ("x@acme.example.evil.example", False),
            ("x@other.example", False),
            ('"x@acme.example"@evil.example', False), ("x%acme.example@evil.example", False),
        ):
            code, text = smtp.mail(sender)
            assert (code, text[:5]) == ((250, b"2.1.0") if allowed else (550, b"5.7.1")), sender
            smtp.rset()


def test_limits_of_a_user(pki: Pki, users: str) -> None:
    """Messages, recipients, size and sessions have their limits; what is refused does not count."""
    limits = {"messages": "3/h", "recipients": "4/d", "message_size": "1KB", "sessions": 1}
    with submission(pki, users, users={"acme": {"limits": limits}}) as process, client(process, pki) as smtp:
        smtp.login("acme", "secret")
        with client(process, pki) as other:
            assert other.docmd("AUTH", RIGHT) == (421, b"4.7.0 Too many sessions of this user")
        assert refusal(smtp.sendmail, "a@x.example", ["b@example.org"], CONTENT * 100)[0] == 552
        to = [f"{name}@example.org" for name in "abcde"]
        assert refusal(smtp.sendmail, "a@x.example", to, CONTENT) == (
            452, b"4.7.1 Limit of 4 recipients in 1d of user acme is reached")
        assert refusal(smtp.sendmail, "refuse@x.example", to[:1], CONTENT)[0] == 554
        process.expect("message")
        assert refusal(smtp.sendmail, "fail@x.example", to[:1], CONTENT)[0] == 451
        process.expect("message")
        while b"RuntimeError" not in process.complaint():
            pass
        for _ in range(3):
            smtp.sendmail("a@x.example", to[:1], CONTENT)
            process.expect("message")
        assert refusal(smtp.sendmail, "a@x.example", to[:1], CONTENT) == (
            452, b"4.7.1 Limit of 3 messages in 1h of user acme is reached")


def test_the_size_of_a_listener_is_announced() -> None:
    """EHLO says what holds, so a client is told at MAIL, before it has sent all of it; a reload says another one."""
    with listening(config=configuration({"relay_from": ["127.0.0.0/8"], "limits": {"message_size": "2KB"}})) as process:
        with Peer(process, greet=False) as peer:
            peer.reply()
            assert "\n250-SIZE 2000\n" in peer.say("EHLO c.example")
            assert peer.say("MAIL FROM:<a@b.example> SIZE=2001").startswith("552 5.3.4")
            peer.begin()
            assert peer.say("x" * 900, "x" * 900, "x" * 900, ".").startswith("552 5.3.4")
            peer.begin()
            assert peer.say("x" * 900, ".").startswith("250")
            process.expect("message")
        process.tell("config " + json.dumps(configuration({"relay_from": ["127.0.0.0/8"]})))
        process.expect("ok")
        with Peer(process, greet=False) as peer:
            peer.reply()
            assert "\n250-SIZE 50000000\n" in peer.say("EHLO c.example")


def test_sessions_of_a_listener_are_counted_out_as_they_were_counted_in() -> None:
    """A limit that a reload takes away and brings back counts the sessions that there are."""
    limited = {"relay_from": ["127.0.0.0/8"], "limits": {"sessions": 1}}
    unlimited = {"relay_from": ["127.0.0.0/8"]}
    with listening(config=configuration(limited)) as process:
        def reload(listener: dict[str, Any]) -> None:
            process.tell("config " + json.dumps(configuration(listener)))
            process.expect("ok")

        def wait_for(sessions: int) -> None:
            process.tell("sessions")
            while process.expect("sessions") != [sessions]:
                process.tell("sessions")

        def is_full() -> bool:
            with Peer(process, greet=False) as peer:
                return peer.reply() == "421 4.7.0 Too many sessions of this listener"

        with Peer(process):
            assert is_full()
            reload(unlimited)
            with Peer(process):
                reload(limited)
                assert is_full()
            wait_for(1)
            assert is_full()
            reload(unlimited)
        wait_for(0)
        reload(limited)
        with Peer(process):
            assert is_full()
