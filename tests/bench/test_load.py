"""The load programs among themselves: what the source sends, the sink counts, where the name server points."""

from __future__ import annotations

import socket
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from bench.nameserver import DEAD_ADDRESS, Zones
from tests.bench.helpers import ADDRESS, run_source, running_nameserver, running_sink


@pytest.mark.parametrize(("options", "messages", "recipients"), [
    ((), 200, 200),
    (("-P",), 200, 200),
    (("-r", "5"), 40, 200),
    (("-r", "5", "-P"), 40, 200),
    (("-q", "7"), 200, 200),
    (("-l", "300000"), 10, 10),
])
def test_every_message_arrives_once(tmp_path: Path, options: tuple[str, ...], messages: int, recipients: int) -> None:
    """What the source says was accepted is what the sink counted, each recipient once."""
    with running_sink(tmp_path) as (sink, port):
        source = run_source(tmp_path, port, "-m", str(messages), "-s", "8", "-D", "5", *options)
    sent, came = source.result(), sink.result()
    assert (sent["accepted"], sent["errors"]) == (messages, 0)
    assert (came["msgs"], came["distinct"], came["dups"], came["strangers"]) == (messages, recipients, 0, 0)
    assert sent["start"] <= sent["first"] <= sent["last"]
    assert 0 < sent["dot_p50_ms"] <= sent["ack_p50_ms"] <= sent["ack_p99_ms"]
    assert source.cpu_s > 0
    assert sink.cpu_s > 0
    assert (sent["reconnects"] > 0) == ("-q" in options)


def test_messages_have_the_size_asked_for(tmp_path: Path) -> None:
    """A message is as long as -l says, to a line: 10 messages of 300,000 bytes are 3,000,000 and a little."""
    with running_sink(tmp_path) as (sink, port):
        run_source(tmp_path, port, "-m", "10", "-s", "1", "-l", "300000")
    assert 2_990_000 < sink.result()["bytes"] < 3_010_000


def test_replies_are_delayed(tmp_path: Path) -> None:
    """With -w each burst of replies comes that much later: the final 250 of a pipelined message too."""
    with running_sink(tmp_path, "-w", "30") as (_, port):
        source = run_source(tmp_path, port, "-m", "4", "-s", "4", "-P")
    assert source.result()["dot_p50_ms"] >= 29
    assert source.result()["ack_p50_ms"] >= 59


def _talk(port: int, *chunks: bytes) -> list[bytes]:
    """Send chunk by chunk, each after the replies to the one before; the replies' codes."""
    with socket.create_connection((ADDRESS, port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.makefile("rb")
        codes = [replies.readline()[:3]]
        for chunk in chunks:
            connection.sendall(chunk)
        while codes[-1] != b"221":
            line = replies.readline()
            assert line, codes
            codes += [line[:3]] if line[3:4] == b" " else []
        return codes


ENVELOPE = b"EHLO me\r\nMAIL FROM:<>\r\nRCPT TO:<u7@d0.test>\r\nDATA\r\n"


def test_the_sink_counts_what_comes_again(tmp_path: Path) -> None:
    """A recipient number that came before is a duplicate, an address without a number a stranger."""
    with running_sink(tmp_path) as (sink, port):
        again = b"MAIL FROM:<>\r\nRCPT TO:<u7@d0.test>\r\nRCPT TO:<bounce@sender.test>\r\nDATA\r\n"
        codes = _talk(port, ENVELOPE, b"one\r\n.\r\n", again, b"two\r\n.\r\n", b"QUIT\r\n")
    assert codes.count(b"354") == 2
    came = sink.result()
    assert (came["msgs"], came["rcpts"], came["distinct"]) == (2, 3, 1)
    assert (came["dups"], came["strangers"]) == (1, 1)


@pytest.mark.parametrize("content", [b".\r\n", b"\r\n.\r\n", b"a\r\n..\r\n.\r\n", b"a\n.\n.b\r\n\r\n.\r\n"])
def test_only_crlf_dot_crlf_ends_content(tmp_path: Path, content: bytes) -> None:
    """The end of content is found wherever its bytes are cut apart, and nowhere else."""
    dialogue = ENVELOPE + content + b"QUIT\r\n"
    with running_sink(tmp_path) as (sink, port):
        assert _talk(port, dialogue)[-3:] == [b"354", b"250", b"221"]
        for cut in range(len(ENVELOPE) - 3, len(dialogue) - 5):
            assert _talk(port, dialogue[:cut], dialogue[cut:])[-3:] == [b"354", b"250", b"221"]
    assert sink.result()["msgs"] == len(dialogue) - len(ENVELOPE) - 1


def test_a_refusing_sink_takes_nothing(tmp_path: Path) -> None:
    """-t answers 451 to MAIL and RCPT, and 503 to DATA."""
    with running_sink(tmp_path, "-t") as (sink, port):
        assert _talk(port, ENVELOPE, b"QUIT\r\n")[2:] == [b"451", b"451", b"503", b"221"]
    assert sink.result()["msgs"] == 0


def test_a_domain_leads_to_the_sink(tmp_path: Path) -> None:
    """dK.test has one MX of its own, whose address is number K modulo their count; UDP, a real resolver's view."""
    with running_nameserver(tmp_path, "-f", ADDRESS, "-k", "50") as (server, port):
        def ask(name: str, kind: str) -> dns.message.Message:
            return dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", port=port, timeout=5)

        mx = ask("d53.test", "MX")
        assert [rdata.to_text() for rdata in mx.answer[0]] == ["10 mx.d53.test."]
        address = ask("mx.D53.Test", "A")
        assert [rdata.to_text() for rdata in address.answer[0]] == ["127.0.0.13"]
        for name, kind in (("mx.d53.test", "AAAA"), ("d53.test", "A"), ("mx.d53.test", "MX")):
            nodata = ask(name, kind)
            assert (nodata.rcode(), nodata.answer) == (dns.rcode.NOERROR, [])
            assert nodata.authority[0].rdtype == dns.rdatatype.SOA
        address = ask("mx.d53.dead", "A")
        assert [rdata.to_text() for rdata in address.answer[0]] == [DEAD_ADDRESS]
        for name in ("sender.test", "d1.example", "d.test", "mx.mx.d1.test", "test"):
            assert ask(name, "MX").rcode() == dns.rcode.NXDOMAIN
    assert server.result()["queries"] == 11


def test_broken_questions_do_no_harm() -> None:
    """What is no question gets no answer or an error, never an exception; responses are not answered."""
    zone = Zones({"test": [ADDRESS]})
    whole = dns.message.make_query("d1.test", "MX", use_edns=False).to_wire()
    for cut in range(len(whole)):
        response = zone.answer(whole[:cut])
        assert response is None or response[3] & 15
    assert zone.answer(whole[:2] + b"\x80" + whole[3:]) is None
    looped = whole[:12] + b"\xc0\x0c" + whole[-4:]
    response = zone.answer(looped)
    assert response is None or response[3] & 15
