"""The whole way of a message: in by SMTP, through the queue, out to the hosts that DNS names."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Callable
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.faults.books import assert_no_bug
from tests.integration.support import Injector, Mta, ends_of, message


def deliver(mta: Mta, count: int, domains: list[str], sessions: int = 8) -> Injector:
    """Inject `count` messages and wait until the queue is empty."""
    injector = Injector(mta, domains, sessions)
    injector.start(count)
    injector.wait()
    assert len(injector.accepted) == count
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    return injector


def test_every_message_arrives_once(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Two workers, many domains: each recipient gets the message exactly once, and one event says so."""
    with make_mta() as mta:
        deliver(mta, 1000, [f"d{index}.test" for index in range(50)])

    stats = sandbox.stats()
    assert (stats["messages"], stats["distinct"], stats["duplicates"]) == (1000, 1000, 0)
    ends, _ = ends_of(mta.events())
    assert len(ends) == 1000
    assert set(ends.values()) == {1}


def test_a_message_to_thousands_of_domains(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """More deliveries than go to memory at once: the checkpoint brings the others, and each recipient gets it once."""
    recipients = [f"u{index}@d{index}.test" for index in range(5000)]
    relay = {"relay": [f"127.0.0.1:{sandbox.smtp_port}"]}
    with make_mta(workers=1, smtp={"recipients": 5000}, routes={"*": relay}) as mta:
        assert mta.send("a@x.test", recipients, message(1, "u@d.test")) == {}
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.stats()["distinct"] == sandbox.stats()["recipients"] == 5000
    ends, last = ends_of(mta.events())
    assert set(ends.values()) == {1}
    assert sorted(recipient for (_, recipient), event in last.items() if event["event"] == "delivered") == sorted(
        recipients)
    assert_no_bug(mta)


def test_content_arrives_as_it_was_sent(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """The body is untouched, dots and all; the header section is preceded by our Received line only."""
    body = b"..two dots\r\n.\r\n.one\r\n\r\n  spaces  \r\n"
    content = message(1, "u@d.test").partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    sandbox.stop()
    with Sandbox({"log_content": "1MB"}) as recording:
        mta = make_mta(dns={"servers": [recording.dns]}, shaping={"default": {"port": recording.smtp_port}})
        with mta:
            # smtplib stuffs dots itself and would also normalise; a final dot line survives both.
            mta.send("a@x.test", ["u@d.test"], content)
            recording.wait_for(lambda stats: bool(stats["messages"] == 1))
        received = recording.log()[-1]["content"]
    assert received.encode("latin-1").endswith(content)
    assert received.startswith("Received: from ")


@pytest.mark.parametrize("kind", ["offered", "refused"])
def test_chunks(kind: str, make_mta: Callable[..., Mta]) -> None:
    """In a chunk content arrives as it was sent, dots and all; so it does, by DATA and at once, at a host that offers
    chunks and cannot take them."""
    body = b"..two dots\r\n.\r\n.one\r\n\r\nQUIT\r\n"
    content = message(1, "u@d.test").partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    with Sandbox({"log_content": "1MB", "default": {"chunking": kind}}) as sandbox:
        mta = make_mta(dns={"servers": [sandbox.dns]}, shaping={"default": {"port": sandbox.smtp_port}})
        with mta:
            mta.send("a@x.test", ["u@d.test"], content)
            sandbox.wait_for(lambda stats: bool(stats["messages"] == 1))
            mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        entry = sandbox.log()[-1]
    assert entry["content"].encode("latin-1").endswith(content)
    assert entry["replies"][1] == ("BDAT" if kind == "offered" else "354")
    assert [event["event"] for event in mta.events()] == ["received", "delivered"]


def test_addresses_beyond_ascii_at_a_host_without_smtputf8(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """The one whose local part is in UTF-8 bounces, named; the others get the message, the domain as A-labels."""
    sandbox.set("xn--bcher-kva.test", {"smtputf8": False})
    with make_mta() as mta:
        with smtplib.SMTP(*mta.smtp) as client:
            client.ehlo()
            assert client.mail("", ["SMTPUTF8"])[0] == 250
            client.command_encoding = "utf-8"
            for local in ("b", "ä", "c"):
                assert client.rcpt(f"{local}@bücher.test")[0] == 250
            assert client.data(message(1, "b@x.test"))[0] == 250
            assert client.mail("", ["SMTPUTF8"])[0] == 250
            assert client.rcpt("d@bücher.test")[0] == 250  # alone, so it stands in Received as well
            assert client.data(message(2, "b@x.test"))[0] == 250
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    assert sorted(entry["recipients"] for entry in sandbox.log()) == [
        ["b@xn--bcher-kva.test", "c@xn--bcher-kva.test"], ["d@xn--bcher-kva.test"]]
    (bounced,) = [event for event in mta.events() if event["event"] == "bounced"]
    assert bounced["recipients"] == ["ä@bücher.test"]
    assert (bounced["code"], bounced["enhanced"]) == (553, "5.6.7")
    assert "<ä@bücher.test>" in bounced["text"]


def test_recipients_of_one_domain_go_in_one_transaction(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """A message to several recipients is one transaction per domain, never with two domains in it."""
    recipients = [f"u{index}@{domain}" for domain in ("a.test", "b.test") for index in range(5)]
    with make_mta() as mta:
        mta.send("a@x.test", recipients, message(1, "list@x.test"))
        sandbox.wait_for(lambda stats: bool(stats["recipients"] == 10))

    assert sandbox.stats()["messages"] == 2
    assert sorted(len({to.partition("@")[2] for to in entry["recipients"]}) for entry in sandbox.log()) == [1, 1]


def test_an_outsider_cannot_relay(make_mta: Callable[..., Mta]) -> None:
    """Without `relay_from` nobody may send: the default is no open relay (`550 5.7.1`)."""
    with (make_mta(listeners=[{"smtp": "127.0.0.1:0"}]) as mta, smtplib.SMTP(*mta.smtp) as client):
        client.ehlo()
        assert client.mail("a@x.test")[0] == 250
        code, text = client.rcpt("u@d.test")

    assert code == 550
    assert text.startswith(b"5.7.1")


def test_deferred_mail_is_tried_again_until_it_is_taken(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Greylisting: the first attempt is deferred with its reason, a later one delivers."""
    sandbox.set("grey.test", {"greylist": "1s"})
    with make_mta() as mta:
        deliver(mta, 20, ["grey.test"])

    events = list(mta.events())
    deferred = [event for event in events if event["event"] == "deferred"]
    assert {event["failure"] for event in deferred} == {"recipient"}
    assert all("Greylisted" in event["text"] for event in deferred)
    assert sandbox.stats()["distinct"] == 20


def test_a_refused_recipient_bounces_to_the_sender(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """5xx to RCPT: a `bounced` event, and a DSN with the null sender arrives at the sender's own domain."""
    sandbox.set("full.test", {"rules": [{"at": "rcpt", "match": "^no-", "reply": "550 5.1.1 no such user"}]})
    with make_mta() as mta:
        mta.send("news@sender.test", ["no-one@full.test", "yes@full.test"], message(1, "x@full.test"))
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 2))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    notice = next(entry for entry in sandbox.log() if entry["recipients"] == ["news@sender.test"])
    assert notice["sender"] == ""
    kinds = [event["event"] for event in mta.events()]
    assert sorted(kinds) == ["bounced", "delivered", "delivered", "notified", "received", "received"]


def test_mail_for_a_domain_that_does_not_exist_bounces_at_once(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """NXDOMAIN and null MX are final; no connection is made."""
    sandbox.set("gone.test", {"dns": {"answer": "nxdomain"}})
    sandbox.set("null.test", {"dns": {"mx": ["0 ."]}})
    with make_mta() as mta:
        mta.send("", ["u@gone.test", "u@null.test"], message(1, "x"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    bounced = {event["queue"]: event for event in mta.events() if event["event"] == "bounced"}
    assert bounced["gone.test"]["enhanced"] == "5.1.2"
    assert bounced["null.test"]["enhanced"] == "5.1.10"
    assert sandbox.stats()["connections"] == 0


def test_a_dead_site_keeps_its_mail_and_comes_back(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Connection refused suspends the path with its reason; no attempt is counted; mail flows when it is back."""
    sandbox.set("dead.test", {"listening": False})
    with make_mta() as mta:
        injector = Injector(mta, ["dead.test", "alive.test"], 4)
        injector.start(200)
        injector.wait()
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 100))

        def row() -> dict[str, Any]:
            rows: list[dict[str, Any]] = [json.loads(line) for line in mta.command("queue", "--json").splitlines()]
            return next(row for row in rows if row["name"] == "dead.test")

        def shown() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(mta.command("queue", "show", "dead.test", "--json", "--limit", "1"))
            return found

        assert row()["deliveries"] == 100
        # While it is being tried again something else is told, but not for long.
        mta.wait_until(lambda: "refused" in row()["reason"], "a queue that was refused")
        mta.wait_until(lambda: "refused" in shown()["reason"], "mail that was refused")
        waiting = shown()["message"]
        mta.wait_until(lambda: f"  waits: {shown()['reason'][:20]}" in mta.command("message", waiting),
                       "the same reason by both commands")
        sandbox.set("dead.test", {})
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    delivered = [event for event in mta.events() if event["event"] == "delivered" and event["queue"] == "dead.test"]
    assert len(delivered) == 100
    assert {event["attempt"] for event in delivered} == {1}


def test_mail_that_nobody_takes_expires_with_its_reason(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """After `expires` the recipient ends as `expired`, and the last reply is told."""
    sandbox.set("busy.test", {"rules": [{"at": "rcpt", "reply": "450 4.2.0 busy for ever"}]})
    with make_mta(expires="3s") as mta:
        mta.send("", ["u@busy.test"], message(1, "x"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    last = [event for event in mta.events() if event["event"] != "deferred"][-1]
    assert last["event"] == "expired"
    assert "busy for ever" in last["last_reply"]


@pytest.mark.parametrize("personality", [
    {"pipelining": False},
    {"esmtp": False},
    {"pipelining_across": "refused"},
    {"pipelining_across": "dropped"},
    {"chunking": "offered"},
    {"chunking": "offered", "pipelining": False},
    {"chunking": "offered", "pipelining_across": "refused"},
    {"chunking": "offered", "pipelining_across": "dropped"},
    {"chunking": "offered", "rules": [{"at": "dot", "times": 1, "reply": "452 4.3.1 full"}]},
    {"chunking": "refused"},
    {"chunking": "dropped"},
    {"starttls": "offered"},
    {"starttls": "broken"},
    {"starttls": "refused"},
    {"messages": 3},
    {"messages": 3, "messages_reply": ""},
    {"connections": 1},
    {"recipients": 1},
    {"data_always": True, "rules": [{"at": "rcpt", "times": 1, "reply": "450 4.2.0 once"}]},
    {"rules": [{"at": "connect", "times": 2, "reply": "421 4.3.2 busy"}]},
    {"rules": [{"at": "connect", "times": 1, "reply": "554 5.3.2 go away"}]},
    {"rules": [{"at": "mail", "times": 1, "reply": "421 4.7.0 later"}]},
    {"rules": [{"at": "dot", "times": 1, "reply": "421 4.7.0 later"}]},
    {"rules": [{"at": "dot", "times": 1, "reply": "452 4.3.1 full"}]},
    {"rules": [{"at": "data", "times": 1, "drop": "rst"}]},
    {"rules": [{"at": "body", "times": 1, "drop": "rst"}]},
    {"rules": [{"at": "dot", "times": 1, "drop": "fin"}]},
    {"rules": [{"at": "body", "times": 1, "reply": "451 4.3.0 stop"}]},
    {"rules": [{"at": "rcpt", "times": 1, "raw": "garbage\r\n"}]},
    {"rules": [{"at": "ehlo", "times": 1, "drop": "fin"}]},
    {"dns": {"mx": ["10 mx1.{domain} closed", "20 mx2.{domain}"]}},
    {"dns": {"mx": ["10 mx1.{domain} nxdomain", "20 mx2.{domain}"]}},
    {"dns": {"mx": 0}},
    {"dns": {"truncate": True}},
    {"latency": "20ms"},
], ids=str)
def test_a_difficult_receiver_gets_every_message_once(
        personality: dict[str, object], make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Whatever a host does at first, in the end each message is there exactly once, and only its own mail waited."""
    sandbox.set("odd.test", personality)
    with make_mta(workers=1) as mta:
        deliver(mta, 40, ["odd.test", "plain.test"], sessions=4)

    assert sandbox.stats()["distinct"] == 40
    assert sandbox.stats()["duplicates"] == 0
    ends, _ = ends_of(mta.events())
    assert (len(ends), set(ends.values())) == (40, {1})


def test_a_limit_of_three_connections_holds_over_four_workers(
        make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """I3, as the receiver counts it; and all workers get their turn, so that all mail arrives."""
    sandbox.set("narrow.test", {"latency": "5ms"})
    with make_mta(workers=4, shaping={"domains": {"narrow.test": {"connections": 3}}}) as mta:
        deliver(mta, 800, ["narrow.test"], sessions=16)

    domain = sandbox.domain("narrow.test")
    assert domain["max_open"] <= 3
    assert sandbox.stats()["distinct"] == 800


def test_a_receivers_own_limit_below_ours_starves_no_worker(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Two connections are all that it takes, of four workers. A worker that is refused gets one of those at rest, or
    its turn: its mail does not wait for the pause after a failure, which is an hour here."""
    sandbox.set("narrow.test", {"connections": 2, "latency": "5ms"})
    with make_mta(workers=4, retry={"site_first": "1h", "site_cap": "1h"}) as mta:
        for _ in range(3):  # in between, connections rest
            deliver(mta, 32, ["narrow.test"], sessions=16)

    assert sandbox.domain("narrow.test")["max_open"] == 2
    assert sandbox.stats()["messages"] == 96
    assert [event for event in mta.events() if event["event"] == "suspended"] == []


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_no_shard_is_forgotten_when_the_number_of_workers_changes(
        before: int, after: int, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Mail queued by three workers is delivered by one, and the other way round."""
    sandbox.set("later.test", {"listening": False})
    mta = make_mta(workers=before)
    with mta:
        injector = Injector(mta, ["later.test"], 6)
        injector.start(120)
        injector.wait()
        assert mta.queued() == 120
    mta.config["workers"] = after
    sandbox.set("later.test", {})
    with mta:
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    assert sandbox.stats()["distinct"] == 120
    assert sandbox.stats()["duplicates"] == 0


def test_an_ordinary_end_is_not_called_a_bug(make_mta: Callable[..., Mta]) -> None:
    """Stopped when idle: exit code 0, and nothing in the log that an operator would have to read."""
    mta = make_mta().start()
    assert mta.stop() == 0
    assert [line for line in mta.log if " error " in line or "Traceback" in line] == []


def test_mail_is_held_as_long_as_its_sender_wants(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """HOLDFOR (RFC 4865): it is not tried before, not after a restart and not by an order to retry either; then at
    once."""
    with make_mta(workers=2) as mta:
        mta.send("a@sender.test", ["u@held.test"], message(1, "u@held.test"), mail_options=["HOLDFOR=15"])
        mta.send("a@sender.test", ["u@held.test"], message(2, "u@held.test"))
        mta.wait_until(lambda: mta.queued() == 1, "the delivery of the other message")
        mta.command("retry", "--domain", "held.test", "--yes")
        assert "its sender asked for it to be held (for;15)" in mta.command("explain", "held.test")
        mta.stop()
        mta.start()
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")

    ages = [event["age_s"] for event in mta.events() if event["event"] == "delivered"]
    assert len(ages) == 2
    assert min(ages) < 15.0 <= max(ages)
    assert [event["event"] for event in mta.events() if event["event"] == "deferred"] == []
