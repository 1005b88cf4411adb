"""What comes from the network beside SMTP: replies as bytes, answers of DNS, frames of the control socket."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import dns.flags
import dns.message
import dns.rrset

from mta.config.schema import Dns
from mta.control import channel, protocol
from mta.delivery import dns_answer, dns_wire
from mta.delivery.outcome import by_codes
from mta.queue.filter import DeliveryFacts, Filter, FilterError, QueueFacts
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import LINES_LIMIT, TEXT_LIMIT, Reply, ReplyParser
from mta.smtp.transaction import Capabilities

REPLY_SEEDS: Final = (
    b"\x00250 2.0.0 Ok\r\n", b"\x01250-mx\r\n250-SIZE 10\r\n250 LIMITS RCPTMAX=1\r\n",
    b"\x02550-5.1.1 one\r\n550 5.1.1 two\r\n421 bye\r\n",
    b"\x03220\r\n354 go\r\n", b"\x05250 \xc3\xbc\xff\t\x1b\r\n", b"\x07250-\r\n250\r\n",
    b"\x09" + b"250-x\r\n" * 5 + b"251 x\r\n",
    b"\x02452 4.5.3 too many recipients\r\n550 contact \\ https://x.example/?\r\n",
)  # fmt: skip
REPLY_WORDS: Final = (
    b"250 ", b"250-", b"550 5.7.1 ", b"421 ", b"\r\n", b"\n", b"\r", b"5.1.1 ", b"SIZE ", b"LIMITS RCPTMAX=", b"AUTH=",
    b"x" * 200, b"\xe2\x80\xa8", b"\x85",
)  # fmt: skip


def _replies(pieces: list[bytes]) -> tuple[list[Reply], bool]:
    parser = ReplyParser()
    found = []
    try:
        for piece in pieces:
            for reply in parser.feed(piece):
                found.append(reply)  # noqa: PERF402 -- those before an error count
    except RemoteProtocolError as error:
        assert str(error).isprintable()
        return found, True
    return found, False


def _groups(stream: bytes) -> list[list[bytes]]:
    """The lines of each reply, as RFC 5321 4.2.1 has it: all but the last have a hyphen."""
    found: list[list[bytes]] = []
    begun: list[bytes] = []
    for line in stream.split(b"\r\n")[:-1]:
        begun.append(line)
        if line[3:4] != b"-":
            found.append(begun)
            begun = []
    return found


def run_replies(data: bytes) -> None:
    """The same bytes are the same replies, or the same end of sense, in whatever pieces; their text prints, and is read
    as the same when we write it."""
    if not data:
        return
    size, stream = data[0] % 9 + 1, data[1:]
    whole = _replies([stream])
    assert _replies([stream[at : at + size] for at in range(0, len(stream), size)]) == whole
    groups = _groups(stream)
    assert len(whole[0]) <= len(groups)
    for reply, group in zip(whole[0], groups, strict=False):
        assert {line[:3] for line in group} == {b"%d" % reply.code}
        assert len(group) == len(reply.lines)
        assert 200 <= reply.code < 600
        assert 0 < len(reply.lines) <= LINES_LIMIT
        assert all(line.isprintable() and len(line) <= TEXT_LIMIT for line in reply.lines)
        assert str(reply).isprintable()
        assert len(str(reply)) <= TEXT_LIMIT
        assert not reply.enhanced or reply.enhanced[0] == str(reply.code)[0]
        again, failed = _replies([reply.to_bytes()])
        assert not failed
        assert [one.code for one in again] == [reply.code]
        by_codes("rcpt", reply)
        if reply.positive:
            Capabilities.from_reply(reply)


@cache
def dns_seeds() -> tuple[bytes, ...]:
    """Answers as servers give them, each behind an octet that says what was asked."""
    found = []
    for kind, records in enumerate((
        [("example.org.", "MX", "10 mx.example.org."), ("example.org.", "MX", "20 mx2.example.net.")],
        [("example.org.", "CNAME", "x.example.org."), ("x.example.org.", "A", "192.0.2.1")],
        [("example.org.", "AAAA", "2001:db8::1"), ("example.org.", "TXT", '"x y"')],
        [("example.org.", "MX", "0 .")], [],
    )):
        query = dns.message.make_query("example.org", ("MX", "A", "AAAA", "MX", "MX")[kind])
        message = dns.message.make_response(query)
        message.flags |= dns.flags.RA
        message.answer = [dns.rrset.from_text(name, 300, "IN", kind_of, value) for name, kind_of, value in records]
        if not records:
            message.set_rcode(3)
            message.authority = [dns.rrset.from_text("org.", 300, "IN", "SOA", "a.example. b.example. 1 2 3 4 60")]
        found.append(bytes((kind % 3,)) + message.to_wire())
    return tuple(found)


_ASKED: Final[tuple[dns_wire.RecordType, ...]] = ("MX", "A", "AAAA")


def run_dns(data: bytes) -> None:
    """An answer is read or refused; what we read it as, dnspython does not deny; what it means is bounded."""
    if not data:
        return
    kind, wire = _ASKED[data[0] % 3], data[1:]
    try:
        ours = dns_wire.read(wire)
    except dns_wire.MessageError as error:
        assert str(error)
        return
    try:
        theirs = dns_wire.read_by_dnspython(wire)
    except dns_wire.MessageError:
        pass  # it looks into records that we pass over
    else:
        assert ours == theirs
    verdict = dns_answer.judge(ours, "example.org", kind)
    assert len(verdict.records) <= dns_answer.MOST_RECORDS
    assert verdict.kind != "ok" or verdict.records
    assert verdict.ttl is None or 0 <= dns_answer.believe_s(verdict.kind, verdict.ttl, Dns()) <= Dns().max_ttl
    if verdict.kind in ("nxdomain", "nodata"):
        assert ours.rcode in (0, 3), "only who answers may make mail fail"


CONTROL_KINDS: Final = (
    protocol.Status, protocol.QueueList, protocol.DeliveryList, protocol.MessageDetail, protocol.OrderAnswer,
    protocol.OrderList, protocol.SweepList, protocol.TouchList, protocol.Obeyed, protocol.WorkerStatus,
)  # fmt: skip


@cache
def control_seeds() -> tuple[bytes, ...]:
    """Requests and answers, as they go over the socket."""
    values: tuple[Any, ...] = (
        ["queues", {"pattern": "*", "limit": 10}], ["order", {"kind": "pause", "filter": "domain=x", "until_us": 5}],
        ["ok", protocol.to_wire(protocol.QueueList([], 1, 2, 3, [protocol.Missing(1, "x")]))],
        ["ok", protocol.to_wire(protocol.WorkerStatus(1, 2, 3.0))], ["ok", None, b"\xff", "\udcff", 1.5, -1, True],
    )
    return tuple(bytes((number,)) + channel.encode(value) for number, value in enumerate(values))


def run_control(data: bytes) -> None:
    """Frames are values or an error, the same in whatever pieces; requests and answers are understood or refused."""
    if not data:
        return
    size, stream = data[0] % 11 + 1, data[1:]
    whole, failed = _values([stream])
    pieces, failed_too = _values([stream[at : at + size] for at in range(0, len(stream), size)])
    assert failed == failed_too
    assert repr(pieces) == repr(whole) if not failed else len(pieces) >= len(whole)
    for value in whole:
        match value:
            case [str(), dict(arguments)]:
                if not all(isinstance(name, str) for name in arguments):
                    continue
                try:
                    protocol.order_of(arguments, "root", 5)
                except (KeyError, TypeError, ValueError, protocol.RequestError):
                    pass
                for kind in CONTROL_KINDS:
                    try:
                        found = protocol.from_wire(kind, arguments)
                    except protocol.RequestError:
                        continue
                    assert protocol.from_wire(kind, protocol.to_wire(found)) == found or "nan" in repr(found)
        if all(type(one) in _PLAIN for one in (value if type(value) is list else [value])):
            again = channel.FrameReader(channel.REQUEST_LIMIT)
            assert repr(again.feed(channel.encode(value))) == repr([value])


_PLAIN: Final = (int, float, str, bytes, bool, type(None))


def _values(pieces: list[bytes]) -> tuple[list[Any], bool]:
    reader = channel.FrameReader(4096)
    found: list[Any] = []
    for piece in pieces:
        try:
            found += reader.feed(piece)
        except channel.FrameError:
            return found, True
        assert reader.pending <= 4096 + 4
    return found, False


FILTER_SEEDS: Final = (
    b"tenant=acme and age>2h and not campaign=welcome*", b'domain="x y" or (sender~^a and size>=1MB)', b"attempts<3",
    b"provider=google", b"not (not (queue=*))", b'reply~"5\\.7\\.1"', b"recipient!=a@b.example",
    b"priority=bulk and pool=\"\"",
)  # fmt: skip
FILTER_WORDS: Final = (
    b" and ", b" or ", b"not ", b"(", b")", b"=", b"!=", b"~", b">=", b'"', b'\\"', b"age>", b"size<", b"domain=",
    b"*", b"?",
)  # fmt: skip
_QUEUE: Final = QueueFacts("c:t@example.org/p", "example.org", "t", "c", "p")
_DELIVERIES: Final = (
    DeliveryFacts("0kx8zzg800001", "a@example.com", ("b@example.org",), 7200.0, 3, 5000, "s", "451 4.7.1 no"),
    DeliveryFacts("0kx8zzg800002", "", ("c@example.org", "d@example.org"), 0.0, 0, 0),
)


def run_filter(data: bytes) -> None:
    """An expression is understood or refused at a column; what is known of a queue holds for each of its deliveries."""
    text = data.decode("utf-8", "replace")
    if "~" in text and len(text) > 60:
        return  # an operator's own expressions may be slow
    try:
        found = Filter.parse(text)
    except FilterError as error:
        assert 1 <= error.column <= len(text) + 1
        return
    of_queue = found.of_queue(_QUEUE)
    for delivery in _DELIVERIES:
        verdict = found.matches(_QUEUE, delivery)
        assert of_queue is None or verdict == of_queue
