"""How MX hosts speak SMTP, and what of it is counted."""

from __future__ import annotations

import smtplib
import socket
import ssl
import time

import pytest

from mta.sandbox.client import Sandbox
from mta.sandbox.connection import READ
from tests.sandbox.helpers import Smtp, content


def test_smtplib_delivers(sandbox: Sandbox) -> None:
    """An ordinary client delivers; the log has the whole envelope, the content is unstuffed."""
    with smtplib.SMTP(sandbox.address("mx1.plain.test"), sandbox.smtp_port) as client:
        client.sendmail("a@x.test", ["u@plain.test"], "Message-ID: <1@x>\r\n\r\n.dot\r\n..\r\n", ["BODY=8BITMIME"])
    entry = sandbox.log()[-1]
    assert (entry["sender"], entry["recipients"]) == ("a@x.test", ["u@plain.test"])
    assert entry["parameters"] == {"SIZE": "31", "BODY": "8BITMIME"}
    assert (entry["host"], entry["end"], entry["key"]) == ("mx1.plain.test", "accepted", "<1@x>")
    assert entry["content"] == "Message-ID: <1@x>\r\n\r\n.dot\r\n..\r\n"
    assert entry["replies"][2].startswith("250 2.0.0 ")


def test_extensions_that_are_offered(sandbox: Sandbox) -> None:
    """Each extension can be switched off, and others added."""
    with Smtp(sandbox, "mx1.offers.test") as client:
        assert client.hello() == [
            "PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"]
    sandbox.set("offers.test", {"pipelining": False, "eight_bit": False, "smtputf8": False, "dsn": False, "size": "off",
                                "extensions": ["LIMITS RCPTMAX=3"]})
    with Smtp(sandbox, "mx1.offers.test") as client:
        assert client.hello() == ["ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=3"]


def test_no_esmtp(sandbox: Sandbox) -> None:
    """Without ESMTP only HELO works."""
    sandbox.set("old.test", {"esmtp": False})
    with Smtp(sandbox, "mx1.old.test") as client:
        assert client.code() == 220
        assert client.say("EHLO c") == 502
        assert client.say("HELO c") == 250
        assert client.deliver("u@old.test")[-1] == 250
    assert sandbox.log()[-1]["esmtp"] is False


def test_order_of_commands(sandbox: Sandbox) -> None:
    """Commands out of order are refused and change nothing."""
    with Smtp(sandbox, "mx1.order.test") as client:
        assert client.code() == 220
        assert client.say("MAIL FROM:<a@x.test>") == 503
        assert client.say("EHLO c") == 250
        assert client.say("RCPT TO:<u@order.test>") == 503
        assert client.say("DATA") == 503
        assert client.say("MAIL FROM:a@x.test") == 501
        assert client.say("MAIL FROM:<>") == 250
        assert client.say("MAIL FROM:<a@x.test>") == 503
        assert client.say("DATA") == 554
        assert client.say("RSET") == 250
        assert client.say("NOOP") == 250
        assert client.say("VRFY u") == 252
        assert client.say("EXPN u") == 502
        assert client.say("MAILX FROM:<a@x.test>") == 502
        assert client.say("QUIT") == 221
        assert client.code() == 0


def test_quoted_and_international_addresses(sandbox: Sandbox) -> None:
    """A ">" in a quoted local part is no end; octets above 127 are taken as UTF-8."""
    with Smtp(sandbox, "mx1.quoted.test") as client:
        client.hello()
        assert client.say("MAIL FROM:<\"a> b\"@x.test> SMTPUTF8") == 250
        assert client.say('RCPT TO:<"u> v\\""@quoted.test>') == 250
        assert client.say("RCPT TO:<ü@quoted.test>") == 250
        assert client.say("DATA") == 354
        client.send(b".\r\n")
        assert client.code() == 250
    assert sandbox.log()[-1]["recipients"] == ['"u> v\\""@quoted.test', "ü@quoted.test"]
    assert sandbox.log()[-1]["size"] == 0


def test_international_domains_count_under_their_a_label(sandbox: Sandbox) -> None:
    """A domain in UTF-8 is the one that the settings name, in whichever form."""
    sandbox.set("bücher.test", {"rules": [{"at": "rcpt", "match": "^no", "reply": "550 5.1.1 no"}]})
    with Smtp(sandbox, "mx1.xn--bcher-kva.test") as client:
        client.hello()
        assert client.say("MAIL FROM:<a@x.test> SMTPUTF8") == 250
        for domain in ("bücher.test", "BÜCHER.test", "xn--bcher-kva.test"):
            assert client.say(f"RCPT TO:<no@{domain}>") == 550
    assert sandbox.domain("xn--bcher-kva.test")["rejected"] == 3


def test_replies_to_a_pipelined_group_come_together(sandbox: Sandbox) -> None:
    """A group that arrives in one write is answered by one write, and is counted as pipelined."""
    with Smtp(sandbox, "mx1.group.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@group.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(3)] == [250, 250, 354]
        client.send(content("g1") + b".\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<v@group.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(4)] == [250, 250, 250, 354]
        client.send(content("g2") + b".\r\nQUIT\r\n")
        assert [client.code() for _ in range(2)] == [250, 221]
    first, second = sandbox.log()[-2:]
    assert (first["pipelined"], first["pipelined_across"]) == (True, False)
    assert (second["pipelined"], second["pipelined_across"]) == (True, True)


@pytest.mark.parametrize(("across", "codes"), [("refused", [250, 503, 503, 503]), ("dropped", [250, 0])])
def test_pipelining_across_messages_that_a_host_does_not_bear(
        sandbox: Sandbox, across: str, codes: list[int]) -> None:
    """The message is taken; the envelope that came with it is refused whole, or the connection ends."""
    domain = f"{across}.test"
    sandbox.set(domain, {"pipelining_across": across})
    with Smtp(sandbox, f"mx1.{domain}") as client:
        client.hello()
        client.send(f"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@{domain}>\r\nDATA\r\n".encode())
        assert [client.code() for _ in range(3)] == [250, 250, 354]
        # In one write, so that no pause of ours comes between them, of which the first read takes the content alone:
        # that they arrive apart must not matter.
        filling = READ - len(content("a1", b"\r\n") + b".\r\n")
        client.send(content("a1", b"x" * filling + b"\r\n") + b".\r\n" +
                    f"MAIL FROM:<a@x.test>\r\nRCPT TO:<v@{domain}>\r\nDATA\r\n".encode())
        assert [client.code() for _ in codes] == codes
        if across == "refused":
            assert client.deliver(f"w@{domain}")[-1] == 250  # not pipelined, it goes
    assert sandbox.domain(domain)["messages"] == (2 if across == "refused" else 1)


def test_content_in_pieces(sandbox: Sandbox) -> None:
    """The end of content is found however the octets arrive, and only CRLF dot CRLF is one."""
    data = content("pieces", b"a\r\n..\r\n.\n.\r.b\r\n") + b".\r\n"
    for step in (1, 2, 3, 4, 11):
        with Smtp(sandbox, "mx1.pieces.test") as client:
            client.hello()
            client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@pieces.test>\r\nDATA\r\n")
            assert [client.code() for _ in range(3)] == [250, 250, 354]
            client.send(data[:-12])
            for start in range(len(data) - 12, len(data), step):
                sandbox.stats()  # by its answer the octets sent before have been read
                client.send(data[start : start + step])
            assert client.code() == 250
        assert sandbox.log()[-1]["content"].endswith("\r\n\r\na\r\n.\r\n\n.\r.b\r\n")


def test_large_content(sandbox: Sandbox) -> None:
    """Content of many reads is whole."""
    body = b"0123456789abcdef\r\n" * 200_000
    with Smtp(sandbox, "mx1.large.test") as client:
        client.hello()
        assert client.deliver("u@large.test", "large", body=body)[-1] == 250
    assert sandbox.domain("large.test")["octets"] == len(content("large", body))


def test_size_limit(sandbox: Sandbox) -> None:
    """More than the announced size is refused, at MAIL when it is declared, else after the content."""
    sandbox.set("small.test", {"size": "1KB"})
    with Smtp(sandbox, "mx1.small.test") as client:
        assert "SIZE 1000" in client.hello()
        assert client.say("MAIL FROM:<a@x.test> SIZE=1001") == 552
        assert client.deliver("u@small.test", body=b"x" * 2000 + b"\r\n")[-1] == 552
        assert client.deliver("u@small.test", body=(b"x" * 70 + b"\r\n") * 3000)[-1] == 552
        assert client.deliver("u@small.test")[-1] == 250
    counts = sandbox.domain("small.test")
    assert (counts["messages"], counts["rejected"]) == (1, 2)


def test_what_comes_with_starttls_in_clear_is_thrown_away(sandbox: Sandbox) -> None:
    """A command behind STARTTLS in the same write is not executed after the handshake (RFC 3207 4.2)."""
    sandbox.set("injected.test", {"starttls": "offered"})
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with Smtp(sandbox, "mx1.injected.test") as client:
        client.hello()
        client.send(b"STARTTLS\r\nVRFY injected\r\n")
        assert client.code() == 220
        with context.wrap_socket(client.socket) as secure:
            secure.sendall(b"NOOP\r\n")
            assert secure.recv(1000) == b"250 2.0.0 Ok\r\n"
    assert sandbox.stats()["violations"]["pipelined_after_starttls"]["count"] == 1


@pytest.mark.parametrize("kind", ["offered", "required"])
def test_starttls(sandbox: Sandbox, kind: str) -> None:
    """After STARTTLS all is forgotten and EHLO no longer offers it; `required` refuses mail without."""
    domain = f"tls-{kind}.test"
    sandbox.set(domain, {"starttls": kind})
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP(sandbox.address(f"mx1.{domain}"), sandbox.smtp_port) as client:
        client.ehlo()
        assert client.mail("a@x.test")[0] == (530 if kind == "required" else 250)
        assert client.starttls(context=context)[0] == 220
        assert client.mail("a@x.test")[0] == 503
        client.ehlo()
        assert not client.has_extn("starttls")
        client.sendmail("a@x.test", [f"u@{domain}"], content("t"))
    assert sandbox.log()[-1]["tls"] == "TLSv1.3"
    assert sandbox.stats()["tls_connections"] >= 1


def test_starttls_that_fails(sandbox: Sandbox) -> None:
    """`refused` answers 454 and goes on in clear; `broken` fails in the handshake."""
    sandbox.set("tls-refused.test", {"starttls": "refused"})
    with Smtp(sandbox, "mx1.tls-refused.test") as client:
        assert "STARTTLS" in client.hello()
        assert client.say("STARTTLS") == 454
        assert client.deliver("u@tls-refused.test")[-1] == 250
    sandbox.set("tls-broken.test", {"starttls": "broken"})
    with smtplib.SMTP(sandbox.address("mx1.tls-broken.test"), sandbox.smtp_port) as client:
        client.ehlo()
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            client.starttls()
        client.close()


def test_latency_is_per_burst(sandbox: Sandbox) -> None:
    """A group of replies waits once, so that pipelining shows its worth."""
    sandbox.set("away.test", {"latency": "100ms"})
    with Smtp(sandbox, "mx1.away.test") as client:
        client.hello()
        before = time.monotonic()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@away.test>\r\nRCPT TO:<v@away.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(4)] == [250, 250, 250, 354]
        assert time.monotonic() - before > 0.09


def test_idle_clients_are_sent_away(sandbox: Sandbox) -> None:
    """A silent client gets 421 and the end of the connection."""
    sandbox.set("idle.test", {"idle": "300ms"})
    with Smtp(sandbox, "mx1.idle.test") as client:
        assert client.code() == 220
        assert client.reply() == (421, ["4.4.2 Idle for too long"])
        assert client.code() == 0


def test_slow_reading(sandbox: Sandbox) -> None:
    """Content is taken at the given rate, and a client that writes more waits."""
    sandbox.set("slowread.test", {"read_rate": "200KB"})
    with Smtp(sandbox, "mx1.slowread.test") as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        client.hello()
        before = time.monotonic()
        assert client.deliver("u@slowread.test", body=(b"x" * 98 + b"\r\n") * 600)[-1] == 250
        assert time.monotonic() - before > 0.2


def test_data_without_recipients(sandbox: Sandbox) -> None:
    """A host that says 354 although it accepted nobody refuses at the end."""
    sandbox.set("eager.test", {"data_always": True, "rules": [{"at": "rcpt", "reply": "550 5.1.1 no"}]})
    with Smtp(sandbox, "mx1.eager.test") as client:
        client.hello()
        client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@eager.test>\r\nDATA\r\n")
        assert [client.code() for _ in range(3)] == [250, 550, 354]
        client.send(b".\r\n")
        assert client.code() == 554
    assert sandbox.domain("eager.test")["messages"] == 0


def test_closed_and_open_again(sandbox: Sandbox) -> None:
    """Without `listening` connections are refused and open ones reset; it can come back."""
    with Smtp(sandbox, "mx1.comes.test") as client:
        client.hello()
        sandbox.set("comes.test", {"listening": False})
        with pytest.raises(ConnectionResetError):
            client.say("NOOP")
    with pytest.raises(ConnectionRefusedError):
        Smtp(sandbox, "mx1.comes.test")
    sandbox.set("comes.test", {})
    with Smtp(sandbox, "mx1.comes.test") as client:
        client.hello()


def test_fixed_relay_address(sandbox: Sandbox) -> None:
    """127.0.0.1 is a host for every domain: the rules of the recipient's domain hold there too."""
    sandbox.set("routed.test", {"rules": [{"at": "rcpt", "reply": "550 5.1.1 no"}]})
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port) as client:
        client.ehlo()
        client.mail("a@x.test")
        assert client.rcpt("u@routed.test")[0] == 550
        assert client.rcpt("u@other.test")[0] == 250


def test_what_clients_should_not_do_is_counted() -> None:
    """Each fault of a client has a name and a count; a good client has none."""
    strict = {"pipelining": False, "dsn": False}
    with Sandbox({"domains": {"strict.test": strict}}) as sandbox:
        with Smtp(sandbox, "mx1.strict.test") as client:
            client.hello()
            assert client.deliver("u@strict.test")[-1] == 250
        assert sandbox.stats()["violations"] == {}
        with Smtp(sandbox, "mx1.strict.test", early=b"EHLO early\r\nNOOP\r\n") as client:
            assert [client.code() for _ in range(3)] == [220, 250, 250]
            client.send(b"MAIL FROM: <a@x.test> RET=FULL\r\nRCPT TO:<u@strict.test>\r\nRCPT TO:<u@b.test>\r\nDATA\r\nX")
            assert [client.code() for _ in range(4)] == [250, 250, 250, 354]
            client.send(b"-Test-Crc32: 0\r\n\r\nbare\nlf\rcr\0\xff" + b"x" * 1000 + b"\r\n.\r\n")
            assert client.code() == 250
            client.send(b"NOOP\n")
            assert client.code() == 250
        assert set(sandbox.stats()["violations"]) == {
            "talks_before_greeting", "pipelined_after_ehlo", "pipelining_not_offered", "space_after_colon",
            "parameter_not_offered", "several_domains", "body_before_354", "bare_lf", "bare_cr", "nul", "long_line",
            "eight_bit_not_declared", "damaged", "command_without_crlf"}


def test_intact_bodies_are_not_damaged(sandbox: Sandbox) -> None:
    """`X-Test-Crc32` is compared with the body as it arrives."""
    body = b"..stuffed\r\nhello\r\n"
    with Smtp(sandbox, "mx1.crc.test") as client:
        client.hello()
        for value in ("99f1a28b", "99f1a28c"):
            client.send(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@crc.test>\r\nDATA\r\n")
            assert [client.code() for _ in range(3)] == [250, 250, 354]
            client.send(b"X-Test-Crc32: %b\r\n\r\n%b.\r\n" % (value.encode(), body))
            assert client.code() == 250
    assert sandbox.stats()["damaged"] == 1
