"""Rules, limits and phases of personalities: each does what it says, and tests can tell beforehand to whom."""

from __future__ import annotations

import time

import pytest

from mta.sandbox.client import Sandbox
from mta.sandbox.draws import chosen
from tests.sandbox.helpers import Smtp, ask, content, records


def rule(at: str, **options: object) -> dict[str, object]:
    """A personality with one rule."""
    return {"rules": [{"at": at, **options}]}


@pytest.mark.parametrize(("at", "codes"), [
    ("mail", [451]), ("rcpt", [250, 451]), ("data", [250, 250, 451]), ("dot", [250, 250, 354, 451]),
])
def test_reply_at_a_stage(sandbox: Sandbox, at: str, codes: list[int]) -> None:
    """A reply at a stage ends the transaction there, and the connection goes on."""
    domain = f"reply-{at}.test"
    sandbox.set(domain, rule(at, reply="451 4.7.1 no\nand no"))
    with Smtp(sandbox, f"mx1.{domain}") as client:
        client.hello()
        assert client.deliver(f"u@{domain}") == codes
        assert client.say("RSET") == 250
        assert client.deliver(f"v@{domain}") == codes
    counts = sandbox.domain(domain)
    assert (counts["messages"], counts["deferred"], counts["rejected"]) == (0, 0 if at == "mail" else 2, 0)
    assert {entry["end"] for entry in sandbox.log()[-2:]} == {"refused"}


def test_reply_at_connect_and_ehlo(sandbox: Sandbox) -> None:
    """A greeting other than 220, and EHLO refused while HELO is not."""
    sandbox.set("greets.test", rule("connect", reply="554 5.7.1 go away"))
    with Smtp(sandbox, "mx1.greets.test") as client:
        assert client.reply() == (554, ["5.7.1 go away"])
    sandbox.set("twice.test", rule("ehlo", reply="450 4.3.0 not now", times=1))
    with Smtp(sandbox, "mx1.twice.test") as client:
        assert client.code() == 220
        assert client.say("EHLO c") == 450
        assert client.say("HELO c") == 250


@pytest.mark.parametrize("at", ["connect", "ehlo", "mail", "rcpt", "data", "dot", "rset"])
def test_421_ends_the_connection(sandbox: Sandbox, at: str) -> None:
    """After a 421 at any stage there is nothing but the end of the connection."""
    domain = f"bye-{at}.test"
    sandbox.set(domain, rule(at, reply="421 4.3.2 shutting down"))
    with Smtp(sandbox, f"mx1.{domain}") as client:
        client.send(f"EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<u@{domain}>\r\n".encode())
        client.send(b"RSET\r\n" if at == "rset" else b"DATA\r\n")
        if at == "dot":
            client.send(content("k") + b".\r\n")
        codes = []
        while code := client.code():
            codes.append(code)
    before = {"connect": 0, "ehlo": 1, "mail": 2, "rcpt": 3, "data": 4, "rset": 4, "dot": 5}[at]
    assert len(codes) == before + 1
    assert codes[-1] == 421


@pytest.mark.parametrize("drop", ["fin", "rst"])
@pytest.mark.parametrize("at", ["connect", "ehlo", "mail", "rcpt", "data", "body", "dot"])
def test_drop_at_a_stage(sandbox: Sandbox, at: str, drop: str) -> None:
    """The connection ends without a reply: in order, or by a reset."""
    domain = f"drop-{at}-{drop}.test"
    sandbox.set(domain, rule(at, drop=drop))

    def session() -> list[int]:
        codes = []
        with Smtp(sandbox, f"mx1.{domain}") as client:
            codes.append(client.code())
            for line in ("EHLO c", "MAIL FROM:<a@x.test>", f"RCPT TO:<u@{domain}>", "DATA"):
                codes.append(client.say(line))
                if not codes[-1]:
                    return codes
            client.send(content("k") + b".\r\n")
            codes.append(client.code())
        return codes

    good = {"connect": 0, "ehlo": 1, "mail": 2, "rcpt": 3, "data": 4, "body": 5, "dot": 5}[at]
    if drop == "rst":
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            session()
    elif at == "connect":
        with Smtp(sandbox, f"mx1.{domain}") as client:
            assert client.code() == 0
    else:
        assert session() == [*[220, 250, 250, 250, 354][:good], 0]
    counts = sandbox.domain(domain)
    assert counts["messages"] == 0
    assert counts["dropped"] == (1 if at in ("rcpt", "data", "body", "dot") else 0)


def test_unknown_outcome(sandbox: Sandbox) -> None:
    """With `keep` the message is delivered although the client never hears of it; the second attempt is a duplicate."""
    sandbox.set("unknown.test", rule("dot", drop="fin", keep=True, times=1))
    for expected in ([250, 250, 354, 0], [250, 250, 354, 250]):
        with Smtp(sandbox, "mx1.unknown.test") as client:
            client.hello()
            assert client.deliver("u@unknown.test", "same") == expected
    counts = sandbox.domain("unknown.test")
    assert (counts["messages"], counts["distinct"], counts["duplicates"], counts["unanswered"]) == (2, 1, 1, 1)


def test_rules_in_the_body(sandbox: Sandbox) -> None:
    """After so many octets: the end of the connection, or a reply while the client still writes."""
    sandbox.set("mid.test", rule("body", after="100KB", drop="rst"))
    with Smtp(sandbox, "mx1.mid.test") as client:
        client.hello()
        assert client.deliver("u@mid.test", body=b"x" * 500 + b"\r\n")[-1] == 250
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            client.deliver("u@mid.test", body=(b"x" * 98 + b"\r\n") * 100_000)
    sandbox.set("early.test", rule("body", after="10KB", reply="552 5.3.4 enough"))
    with Smtp(sandbox, "mx1.early.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@early.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(3)] == [250, 250, 354]
        client.send((b"x" * 98 + b"\r\n") * 200)
        assert client.code() == 552
        client.send(b"rest\r\n.\r\nNOOP\r\n")
        assert client.code() == 250  # of NOOP: the message has its answer
    counts = sandbox.domain("early.test")
    assert (counts["messages"], counts["rejected"]) == (0, 1)


def test_garbage_instead_of_a_reply(sandbox: Sandbox) -> None:
    """`raw` is sent as it is."""
    sandbox.set("garbage.test", rule("mail", raw="what?\r\n"))
    with Smtp(sandbox, "mx1.garbage.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\n")
        assert client.raw_line() == b"what?\r\n"


def test_hanging(sandbox: Sandbox) -> None:
    """A host that hangs gives no answer until the client goes, and the connection counts as open until then."""
    sandbox.set("hangs.test", rule("dot", hang=True))
    with Smtp(sandbox, "mx1.hangs.test") as client:
        client.hello()
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.deliver("u@hangs.test")
        assert sandbox.domain("hangs.test")["open"] == 1
    sandbox.wait_for(lambda stats: bool(stats["open"] == 0))


def test_delay_goes_on_to_the_next_rule(sandbox: Sandbox) -> None:
    """A rule with nothing but a delay ends no stage."""
    sandbox.set("delays.test", {"rules": [{"at": "rcpt", "delay": "400ms"}, {"at": "rcpt", "reply": "450 4.2.1 no"}]})
    with Smtp(sandbox, "mx1.delays.test") as client:
        client.hello()
        before = time.monotonic()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@delays.test>\r\n")
        assert client.code() == 250
        assert client.code() == 450
        assert time.monotonic() - before >= 0.4


def test_replies_from_before_a_delay_do_not_wait_for_it() -> None:
    """They leave at once: here the delay does not end."""
    settings = {"domains": {"waits.test": rule("rcpt", delay="1h")}}
    with Sandbox(settings) as sandbox, Smtp(sandbox, "mx1.waits.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@waits.test>\r\n")
        assert client.code() == 250


def test_shares_can_be_told_beforehand(sandbox: Sandbox) -> None:
    """Who is in a share follows from the recipient and the position of the rule."""
    sandbox.set("share.test", {"rules": [
        {"at": "rcpt", "share": 0.3, "reply": "550 5.1.1 no such user"},
        {"at": "rcpt", "share": 0.2, "reply": "450 4.2.2 full"},
    ]})
    recipients = [f"u{number}@share.test" for number in range(300)]
    expected = {
        recipient: 550 if chosen(0.3, recipient, 0) else 450 if chosen(0.2, recipient, 1) else 250
        for recipient in recipients}
    with Smtp(sandbox, "mx1.share.test") as client:
        client.hello()
        client.say("MAIL FROM:<a@x.test>")
        for _ in range(2):
            client.send(b"".join(f"RCPT TO:<{recipient}>\r\n".encode() for recipient in recipients))
            assert {recipient: client.code() for recipient in recipients} == expected
    codes = list(expected.values())
    assert 60 < codes.count(550) < 120
    assert 20 < codes.count(450) < 65


def test_share_of_messages_goes_by_the_first_recipient(sandbox: Sandbox) -> None:
    """At the dot the subject is the first recipient that was accepted."""
    sandbox.set("shared.test", rule("dot", share=0.5, reply="451 4.3.0 busy"))
    with Smtp(sandbox, "mx1.shared.test") as client:
        client.hello()
        for number in range(40):
            expected = 451 if chosen(0.5, f"u{number}@shared.test") else 250
            assert client.deliver(f"u{number}@shared.test")[-1] == expected


def test_match_and_times(sandbox: Sandbox) -> None:
    """A rule can be for some recipients only, and for the first attempts of each only."""
    sandbox.set("match.test", rule("rcpt", match="^no-", reply="450 4.2.1 wait", times=2))
    with Smtp(sandbox, "mx1.match.test") as client:
        client.hello()
        client.say("MAIL FROM:<a@x.test>")
        assert client.say("RCPT TO:<u@match.test>") == 250
        for name in ("no-a", "no-b"):
            assert [client.say(f"RCPT TO:<{name}@match.test>") for _ in range(3)] == [450, 450, 250]


# --- limits --------------------------------------------------------------------------------------------------------


def test_limit_of_connections_is_per_client(sandbox: Sandbox) -> None:
    """One more than the limit is refused; another client, or the same one after it closed, is not."""
    sandbox.set("narrow.test", {"connections": 2})
    with Smtp(sandbox, "mx1.narrow.test") as first, Smtp(sandbox, "mx1.narrow.test") as second:
        assert first.code() == second.code() == 220
        with Smtp(sandbox, "mx1.narrow.test") as third:
            assert third.code() == 421
            assert third.code() == 0
        with Smtp(sandbox, "mx1.narrow.test", source="127.0.0.9") as other:
            assert other.code() == 220
        first.close()
        with Smtp(sandbox, "mx1.narrow.test") as fourth:
            assert fourth.code() == 220
    site = sandbox.sites()["narrow.test"]
    assert (site["refused"], site["max_open"]) == (1, 3)
    most = {client: counts["max_open"] for client, counts in site["clients"].items()}
    assert most == {"127.0.0.1": 2, "127.0.0.9": 1}


def test_limit_of_connections_without_a_word(sandbox: Sandbox) -> None:
    """An empty reply closes the connection with nothing said."""
    sandbox.set("mute.test", {"connections": 0, "connections_reply": ""})
    with Smtp(sandbox, "mx1.mute.test") as client:
        assert client.code() == 0


def test_limit_holds_for_all_hosts_of_a_site(sandbox: Sandbox) -> None:
    """Two MX hosts of a domain share the limit, and domains that share their hosts share it as well."""
    sandbox.set("shares.test", {"connections": 1, "dns": {"mx": ["10 in1.shares.example", "10 in2.shares.example"]}})
    with Smtp(sandbox, "in1.shares.example") as first, Smtp(sandbox, "in2.shares.example") as second:
        assert first.code() == 220
        assert second.code() == 421


def test_limit_of_messages(sandbox: Sandbox) -> None:
    """The next MAIL gets 421, or the connection ends right after the last reply."""
    sandbox.set("few.test", {"messages": 2})
    with Smtp(sandbox, "mx1.few.test") as client:
        client.hello()
        assert [client.deliver("u@few.test")[-1] for _ in range(3)] == [250, 250, 421]
    sandbox.set("fewer.test", {"messages": 1, "messages_reply": ""})
    with Smtp(sandbox, "mx1.fewer.test") as client:
        client.hello()
        assert client.deliver("u@fewer.test")[-1] == 250
        assert client.code() == 0


def test_limit_of_recipients(sandbox: Sandbox) -> None:
    """More recipients than allowed are deferred, the others get the message."""
    sandbox.set("pair.test", {"recipients": 2})
    with Smtp(sandbox, "mx1.pair.test") as client:
        client.hello()
        client.say("MAIL FROM:<a@x.test>")
        assert [client.say(f"RCPT TO:<u{number}@pair.test>") for number in range(3)] == [250, 250, 452]
        assert client.say("DATA") == 354
        client.send(b"X-Test-Id: pair\r\n\r\n.\r\n")
        assert client.code() == 250
    counts = sandbox.domain("pair.test")
    assert (counts["messages"], counts["recipients"], counts["deferred"]) == (1, 2, 1)


def until_accepted(client: Smtp, recipient: str) -> None:
    """Deliver again and again until it is taken."""
    deadline = time.monotonic() + 60
    while client.deliver(recipient)[-1] != 250:
        assert time.monotonic() < deadline, "it is refused for ever"
        client.say("RSET")
        time.sleep(0.02)


def test_rate(sandbox: Sandbox) -> None:
    """More messages than the rate allows are refused until time has passed."""
    sandbox.set("rate.test", {"rate": "2/1h", "rate_reply": "450 4.7.1 slower"})
    with Smtp(sandbox, "mx1.rate.test") as client:
        client.hello()
        assert [client.deliver("u@rate.test")[-1] for _ in range(3)] == [250, 250, 450]
    sandbox.set("soon.test", {"rate": "1/300ms", "rate_reply": "450 4.7.1 slower"})
    with Smtp(sandbox, "mx1.soon.test") as client:
        client.hello()
        before = time.monotonic()
        for _ in range(3):
            until_accepted(client, "u@soon.test")
        assert time.monotonic() - before > 0.59


def test_greylisting(sandbox: Sandbox) -> None:
    """A triplet is deferred until its time is over; another sender, recipient or client is a new one."""
    sandbox.set("grey.test", {"greylist": "1h"})
    with Smtp(sandbox, "mx1.grey.test") as client:
        client.hello()
        for _ in range(2):
            assert client.deliver("u@grey.test")[-1] == 451
            client.say("RSET")
    sandbox.set("whitened.test", {"greylist": "300ms"})
    with Smtp(sandbox, "mx1.whitened.test") as client:
        client.hello()
        before = time.monotonic()
        until_accepted(client, "u@whitened.test")
        assert time.monotonic() - before > 0.29
        assert client.deliver("u@whitened.test", sender="b@x.test")[-1] == 451
        client.say("RSET")
        assert client.deliver("v@whitened.test")[-1] == 451
        client.say("RSET")
        assert client.deliver("u@whitened.test")[-1] == 250


# --- phases --------------------------------------------------------------------------------------------------------


def test_phases_come_and_go(sandbox: Sandbox) -> None:
    """A phase holds from its beginning to its end, for DNS, sockets and rules alike, without anybody asking."""
    outage = {"listening": False, "dns": {"mx": 2}}
    with Smtp(sandbox, "mx1.phases.test") as client:
        client.hello()
        assert len(records(ask(sandbox, "phases.test", "MX"))) == 1
        before = time.monotonic()
        sandbox.set("phases.test", {"phases": [{"since": "300ms", **outage}]})
        with pytest.raises(ConnectionResetError):
            client.code()  # waits for the outage
        assert time.monotonic() - before > 0.29
        assert len(records(ask(sandbox, "phases.test", "MX"))) == 2
    with pytest.raises(ConnectionRefusedError):
        Smtp(sandbox, "mx1.phases.test")
    before = time.monotonic()
    sandbox.set("phases.test", {"phases": [{"until": "500ms", **outage}]})
    client = when_it_listens(sandbox, "mx1.phases.test")
    assert time.monotonic() - before > 0.49
    with client:
        client.hello()
    assert len(records(ask(sandbox, "phases.test", "MX"))) == 1


def when_it_listens(sandbox: Sandbox, host: str) -> Smtp:
    """A connection to it, once it takes one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return Smtp(sandbox, host)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "it refuses for ever"
            time.sleep(0.02)
