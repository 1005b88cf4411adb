"""What is offered is taken and honoured, what is not offered is not; and the parameters of the rarer extensions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mta.inject.intake import HONOURED
from mta.queue.records import BINARY, DOTLESS, EIGHT_BIT, REQUIRE_TLS, SMTPUTF8, Recipient
from mta.smtp.envelope import Asked, Envelope
from mta.smtp.extensions import BASIC_VERBS, BEYOND, EXTENSIONS
from mta.smtp.peer import ALL_RIGHTS, Peer, SameForAll, Tls
from mta.smtp.sasl import MECHANISMS
from mta.smtp.server import MessageReceived, Server, ServerSettings
from mta.smtp.transaction import CARRIED, Capabilities, Transaction, commands_for
from tests.smtp.helpers import CONTENT, say

NOW_S = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
PEER = Peer("192.0.2.9", 4711, Tls("TLSv1.3", "x"), may_xclient=True)
VALUES = {  # a good parameter of each name
    "SIZE": "SIZE=1", "BODY": "BODY=8BITMIME", "SMTPUTF8": "SMTPUTF8", "RET": "RET=FULL", "ENVID": "ENVID=x",
    "NOTIFY": "NOTIFY=NEVER", "ORCPT": "ORCPT=rfc822;a@b.example", "AUTH": "AUTH=<>", "REQUIRETLS": "REQUIRETLS",
    "HOLDFOR": "HOLDFOR=60", "HOLDUNTIL": "HOLDUNTIL=2030-01-01T00:01:00Z", "MT-PRIORITY": "MT-PRIORITY=3",
    "BY": "BY=60;N",
}  # fmt: skip


def server(peer: Peer = PEER, **options: object) -> Server:
    """A session that offers everything, unless told otherwise."""
    everything = {"permissions": SameForAll(ALL_RIGHTS), "mechanisms": MECHANISMS, "starttls": True, "honours": BEYOND,
                  "future_release_s": 86_400, "deliver_by_s": 30, "clock": lambda: NOW_S}
    machine = Server(ServerSettings("mx.example.net", **{**everything, **options}), peer)
    say(machine, "EHLO client.example")
    return machine


def keywords(machine: Server) -> list[str]:
    """What EHLO offers, by keyword."""
    return [line[4:].split()[0] for line in say(machine, "EHLO client.example")[0].split("\r\n")[1:]]


def line_of(machine: Server, keyword: str) -> str:
    """The line of EHLO that offers this."""
    return next(line[4:] for line in say(machine, "EHLO x.example")[0].split("\r\n") if line[4:].split()[0] == keyword)


# -- offered and taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda extension: extension.keyword)
def test_what_is_offered_is_taken(extension: object) -> None:
    """Each extension is offered by some session, which knows its verbs and takes its parameters (RFC 5321 2.2.2)."""
    keyword, _, verbs, mail, rcpt, _ = extension
    machine = server(Peer("192.0.2.9", 4711)) if keyword == "STARTTLS" else server()
    assert keyword in keywords(machine)
    for name in mail:
        assert say(machine, f"MAIL FROM:<a@example.com> {VALUES[name]}", "RSET")[0].startswith("250"), name
    for name in rcpt:
        say(machine, "MAIL FROM:<a@example.com>")
        assert say(machine, f"RCPT TO:<b@example.org> {VALUES[name]}", "RSET")[0].startswith("250"), name
    for verb in verbs:
        assert not say(machine, f"{verb} 0")[0].startswith(("500", "502")), verb


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda extension: extension.keyword)
def test_what_is_not_offered_is_not_taken(extension: object) -> None:
    """Without the offer a parameter is 555 (RFC 5321 4.1.1.11), for MAIL and RCPT alike, and a verb not known."""
    keyword, _, verbs, mail, rcpt, beyond = extension
    bare = Peer("192.0.2.9", 4711)
    machine = server(bare, honours=(), starttls=False)
    offered = keywords(machine)
    if beyond:
        assert keyword not in offered
    if keyword not in offered:
        for name in {*mail, *rcpt} - {"BODY"}:
            assert say(machine, f"MAIL FROM:<a@example.com> {VALUES[name]}")[0].startswith("555 5.5.4"), name
        for verb in verbs:
            assert say(machine, f"{verb} 0")[0][:3] in ("502", "538", "550"), verb
    for name in mail:
        say(machine, "MAIL FROM:<a@example.com>")
        assert say(machine, f"RCPT TO:<b@example.org> {VALUES[name]}", "RSET")[0].startswith("555 5.5.4"), name


def test_nothing_is_offered_that_nobody_honours() -> None:
    """What asks something of others is offered if one of them says that it sees to it, and they say nothing else."""
    assert CARRIED | HONOURED <= BEYOND
    offered = set(keywords(server(honours=CARRIED | HONOURED)))
    assert BEYOND & offered == CARRIED | HONOURED
    assert not BEYOND & set(keywords(server(honours=())))


def test_what_is_carried_is_carried() -> None:
    """The client's side passes on the wishes of which it says so, to a host that offers the extension."""
    wishes = {"8BITMIME": {"flags": EIGHT_BIT}, "SMTPUTF8": {"flags": SMTPUTF8}, "DSN": {"ret": "FULL"},
              "BINARYMIME": {"flags": BINARY}, "REQUIRETLS": {"flags": REQUIRE_TLS},
              "DELIVERBY": {"by_mode": "NT", "by_s": -7}}
    assert set(wishes) == CARRIED
    host = Capabilities(esmtp=True, eight_bit=True, smtputf8=True, dsn=True, mt_priority=True,
                        chunking=True, binary=True, require_tls=True, deliver_by=0)
    for keyword, wish in wishes.items():
        content = "Subject: ü\r\n\r\n".encode()
        transaction = Transaction("a@example.com", [Recipient("b@example.org")], content, **wish)
        names = next(extension.mail for extension in EXTENSIONS if extension.keyword == keyword)
        assert any(name in commands_for(transaction, host)[0] for name in names), keyword
    transaction = Transaction("a@example.com", [Recipient("b@example.org")], CONTENT, priority=-3)
    assert commands_for(transaction, host)[0] == "MAIL FROM:<a@example.com> MT-PRIORITY=-3\r\n"
    assert commands_for(transaction, Capabilities(esmtp=True))[0] == "MAIL FROM:<a@example.com>\r\n"


def test_requiretls_only_under_tls() -> None:
    """RFC 8689 4.1."""
    assert "REQUIRETLS" in keywords(server())
    assert "REQUIRETLS" not in keywords(server(Peer("192.0.2.9", 4711)))
    assert say(server(Peer("192.0.2.9", 4711)), "MAIL FROM:<> REQUIRETLS")[0].startswith("555 5.5.4")


def test_requiretls_is_never_sent_without_the_offer() -> None:
    """The last guard, should the session not be what it was thought to be: nothing is sent (RFC 8689 4.2.1)."""
    transaction = Transaction("a@example.com", [Recipient("b@example.org")], CONTENT, REQUIRE_TLS)
    assert commands_for(transaction, Capabilities(esmtp=True)) == []
    assert transaction.local_reply is not None
    assert (transaction.local_reply.code, transaction.local_reply.enhanced) == (550, "5.7.30")


def test_help_names_what_there_is() -> None:
    """The verbs of HELP are those that are known."""
    text = say(server(), "HELP")[0].split("\r\n")[0].removeprefix("214-2.0.0 ").split()
    assert text == [*BASIC_VERBS, "BDAT", "AUTH", "XCLIENT"]
    assert say(server(Peer("192.0.2.9", 4711), honours=(), starttls=False), "HELP")[0].split("\r\n")[0] == (
        f"214-2.0.0 {' '.join(BASIC_VERBS)} BDAT"
    )


def test_lines_with_values() -> None:
    """What stands behind a keyword: limits, and for FUTURERELEASE the seconds and the latest date (RFC 4865 4)."""
    assert line_of(server(), "FUTURERELEASE") == "FUTURERELEASE 86400 2030-01-02T00:00:00Z"
    assert line_of(server(), "DELIVERBY") == "DELIVERBY 30"
    assert line_of(server(deliver_by_s=0), "DELIVERBY") == "DELIVERBY"
    assert line_of(server(), "LIMITS") == "LIMITS RCPTMAX=1000"
    assert "FUTURERELEASE" not in keywords(server(future_release_s=0))


# -- the parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        # RFC 4865 4
        ("HOLDFOR=0", "250"), ("HOLDFOR=86400", "250"), ("HOLDFOR=86401", "501 5.5.4"), ("HOLDFOR=-1", "501 5.5.4"),
        ("HOLDFOR=1.5", "501 5.5.4"), ("HOLDFOR=", "501 5.5.4"), ("HOLDFOR", "501 5.5.4"),
        ("HOLDFOR=1234567890", "501 5.5.4"), ("holdfor=60", "250"),
        ("HOLDUNTIL=2030-01-01T00:00:01Z", "250"), ("HOLDUNTIL=2030-01-01t05:00:00+04:00", "250"),
        ("HOLDUNTIL=2030-01-02T00:00:00.0Z", "250"), ("HOLDUNTIL=2030-01-01T00:00:01.123456789Z", "250"),
        ("HOLDUNTIL=2030-01-02T00:00:01Z", "501 5.5.4"),
        ("HOLDUNTIL=2029-12-31T23:59:59Z", "501 5.5.4"), ("HOLDUNTIL=2030-01-01T00:00:00Z", "501 5.5.4"),
        ("HOLDUNTIL=2030-13-01T00:00:00Z", "501 5.5.4"), ("HOLDUNTIL=2030-01-01", "501 5.5.4"),
        ("HOLDUNTIL=2030-01-01T00:00:01", "501 5.5.4"), ("HOLDUNTIL=0001-01-01T00:00:00+23:59", "501 5.5.4"),
        ("HOLDUNTIL=9999-12-31T23:59:59-23:59", "501 5.5.4"), ("HOLDUNTIL=tomorrow", "501 5.5.4"),
        ("HOLDFOR=60 HOLDUNTIL=2030-01-01T00:01:00Z", "501 5.5.4"), ("HOLDFOR=60 HOLDFOR=60", "501 5.5.4"),
        # RFC 6710 4
        ("MT-PRIORITY=0", "250"), ("MT-PRIORITY=9", "250"), ("MT-PRIORITY=-9", "250"), ("MT-PRIORITY=10", "501 5.5.4"),
        ("MT-PRIORITY=+1", "501 5.5.4"), ("MT-PRIORITY=-0", "501 5.5.4"), ("MT-PRIORITY=", "501 5.5.4"),
        ("MT-PRIORITY", "501 5.5.4"),
        # RFC 2852 4
        ("BY=30;R", "250"), ("BY=29;R", "555 5.5.4"), ("BY=0;R", "501 5.5.4"), ("BY=-1;R", "501 5.5.4"),
        ("BY=29;N", "250"), ("BY=0;N", "250"), ("BY=-100;NT", "250"), ("BY=+100;rt", "250"), ("BY=100;T", "501 5.5.4"),
        ("BY=100", "501 5.5.4"), ("BY=;R", "501 5.5.4"), ("BY=1234567890;R", "501 5.5.4"), ("BY=1;RN", "501 5.5.4"),
        ("BY=60;R HOLDFOR=60", "501 5.5.4"), ("HOLDFOR=59 BY=60;R", "250"), ("BY=60;N HOLDFOR=600", "250"),
        # RFC 8689 3, RFC 3030 3
        ("REQUIRETLS", "250"), ("REQUIRETLS=yes", "501 5.5.4"), ("BODY=BINARYMIME", "250"), ("BODY=x", "501 5.5.4"),
    ],
)  # fmt: skip
def test_parameters(parameters: str, reply: str) -> None:
    """Each parameter, and what is none; a MAIL that is refused begins nothing."""
    machine = server()
    assert say(machine, f"MAIL FROM:<a@example.com> {parameters}")[0].startswith(reply)
    assert machine.idle == (not reply.startswith("250"))


@pytest.mark.parametrize(
    ("parameters", "envelope"),
    [
        ("HOLDFOR=60", Envelope(asked=Asked(hold="for;60", hold_s=60.0))),
        ("HOLDUNTIL=2030-01-01t01:00:00z",
         Envelope(asked=Asked(hold="until;2030-01-01T01:00:00Z", hold_s=3600.0))),
        ("MT-PRIORITY=-4", Envelope(asked=Asked(priority=-4))),
        ("BY=-5;nt", Envelope(asked=Asked(by_s=-5, by_mode="NT"))),
        ("REQUIRETLS", Envelope(flags=REQUIRE_TLS)),
        ("BODY=BINARYMIME", Envelope(flags=BINARY | EIGHT_BIT)),
        ("AUTH=<>", Envelope()),
    ],
)
def test_envelope(parameters: str, envelope: Envelope) -> None:
    """What was asked is in the envelope."""
    machine = server()
    say(machine, f"MAIL FROM:<> {parameters}", "RCPT TO:<b@example.org>")
    (event,) = machine.receive(b"BDAT 0 LAST\r\n")
    assert isinstance(event, MessageReceived)
    envelope.recipients = [Recipient("b@example.org")]
    envelope.helo, envelope.esmtp = "client.example", True
    if not envelope.flags & BINARY:
        envelope.flags |= DOTLESS  # it has no line at all
    assert event.envelope == envelope
