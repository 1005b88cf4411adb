"""The DNS of the sandbox, asked by dnspython."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time

import dns.exception
import dns.flags
import dns.message
import dns.query
import pytest

from mta.sandbox.client import Sandbox
from tests.sandbox.helpers import Smtp, ask, rcode, records


def test_every_domain_has_an_mx_with_a_loopback_address(sandbox: Sandbox) -> None:
    """An unknown domain has one MX host, which has an address in 127/8 where SMTP is spoken."""
    assert records(ask(sandbox, "any.names.test", "MX")) == ["10 mx1.any.names.test."]
    address = records(ask(sandbox, "mx1.any.names.test", "A"))[0]
    assert ipaddress.ip_address(address) in ipaddress.ip_network("127.64.0.0/10")
    assert address == sandbox.address("mx1.any.names.test")
    assert records(ask(sandbox, "mx1.any.names.test", "AAAA")) == []
    with Smtp(sandbox, "mx1.any.names.test") as client:
        assert client.reply() == (220, ["mx1.any.names.test ESMTP sandbox"])


def test_a_host_has_the_same_address_in_every_sandbox(sandbox: Sandbox) -> None:
    """The address follows from the name, so that a cache that outlives a sandbox is not wrong."""
    with Sandbox() as other:
        assert other.address("mx1.same.test") == sandbox.address("mx1.same.test")


def test_case_does_not_matter_and_the_question_comes_back_as_asked(sandbox: Sandbox) -> None:
    """Names are compared without case; the question is echoed as it was asked."""
    answer = ask(sandbox, "AnY.nAmEs.test", "MX")
    assert answer.question[0].name.to_text() == "AnY.nAmEs.test."
    assert records(answer) == ["10 mx1.any.names.test."]


def test_a_repeated_question_is_answered_from_the_cache_with_its_own_id(sandbox: Sandbox) -> None:
    """The same octets again get the same answer under the id of the question."""
    host, _, port = sandbox.dns.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(5)
        answers = []
        for number in (7, 8, 9):
            query = dns.message.make_query("again.test", "MX", id=number).to_wire()
            udp.sendto(query, (host, int(port)))
            answers.append(udp.recv(4096))
    assert [struct.unpack("!H", answer[:2])[0] for answer in answers] == [7, 8, 9]
    assert len({answer[2:] for answer in answers}) == 1
    assert sandbox.questions()["again.test MX"] == 3


def test_a_name_that_leaves_no_room_for_its_mx_host(sandbox: Sandbox) -> None:
    """It is answered SERVFAIL, and the next question as ever: the name server goes on."""
    name = "a." * 123 + "test"
    assert rcode(ask(sandbox, name, "MX")) == "SERVFAIL"
    assert records(ask(sandbox, "next.names.test", "MX")) == ["10 mx1.next.names.test."]


def test_list_of_mx_hosts_with_states(sandbox: Sandbox) -> None:
    """MX hosts come with their preferences; each state has its own answer to a question for the address."""
    sandbox.set("many.test", {"dns": {"ttl": "7s", "mx": [
        "10 mx1.{domain}", "20 mx2.{domain} closed", "30 mx3.{domain} noaddress", "40 mx4.{domain} nxdomain",
        "50 mx5.{domain} servfail", "60 far.example 192.0.2.1,2001:db8::1", "70 mx7.{domain} cname"]}})
    answer = ask(sandbox, "many.test", "MX")
    assert records(answer)[0] == "10 mx1.many.test."
    assert len(records(answer)) == 7
    assert answer.answer[0].ttl == 7
    assert rcode(ask(sandbox, "mx3.many.test", "A")) == "NOERROR"
    assert records(ask(sandbox, "mx3.many.test", "A")) == []
    assert rcode(ask(sandbox, "mx4.many.test", "A")) == "NXDOMAIN"
    assert rcode(ask(sandbox, "mx5.many.test", "A")) == "SERVFAIL"
    assert records(ask(sandbox, "far.example", "A")) == ["192.0.2.1"]
    assert records(ask(sandbox, "far.example", "AAAA")) == ["2001:db8::1"]
    alias = records(ask(sandbox, "mx7.many.test", "A"))
    assert alias == ["alias.mx7.many.test.", sandbox.address("mx7.many.test")]
    dead = records(ask(sandbox, "mx2.many.test", "A"))[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((dead, sandbox.smtp_port), 5)


def test_unreachable_host_gives_no_answer_to_a_connect(sandbox: Sandbox) -> None:
    """A connect to an unreachable host neither succeeds nor is refused."""
    sandbox.set("far.test", {"dns": {"mx": ["10 mx1.{domain} unreachable"]}})
    with pytest.raises(TimeoutError):
        socket.create_connection((sandbox.address("mx1.far.test"), sandbox.smtp_port), 0.3)


@pytest.mark.parametrize(("mx", "expected"), [(0, []), ([], []), (["0 ."], ["0 ."]), (2, ["10 mx1.", "20 mx2."])])
def test_number_of_mx_hosts(sandbox: Sandbox, mx: object, expected: list[str]) -> None:
    """No MX: the domain is its own host. A null MX is one record with the root."""
    name = f"count{len(expected)}{len(str(mx))}.test"
    sandbox.set(name, {"dns": {"mx": mx}})
    assert records(ask(sandbox, name, "MX")) == [
        text if text == "0 ." else f"{text}{name}." for text in expected]
    assert records(ask(sandbox, name, "A")) == [sandbox.address(name)]


def test_no_mx_answer_says_how_long_it_holds(sandbox: Sandbox) -> None:
    """Answers without data carry the SOA whose minimum is the negative time to live (RFC 2308)."""
    sandbox.set("bare.test", {"dns": {"mx": 0, "ttl": "9s"}})
    sandbox.set("gone.test", {"dns": {"answer": "nxdomain", "ttl": "8s"}})
    for name, ttl in (("bare.test", 9), ("gone.test", 8)):
        soa = ask(sandbox, name, "MX").authority[0]
        assert soa.ttl == ttl
        assert soa[0].minimum == ttl


@pytest.mark.parametrize("outcome", ["nxdomain", "servfail", "refused", "formerr"])
def test_error_answers(sandbox: Sandbox, outcome: str) -> None:
    """`answer` decides the outcome of MX questions; only a name that does not exist has no address either."""
    sandbox.set(f"{outcome}.test", {"dns": {"answer": outcome}})
    assert rcode(ask(sandbox, f"{outcome}.test", "MX")) == outcome.upper()
    assert rcode(ask(sandbox, f"{outcome}.test", "MX", tcp=True)) == outcome.upper()
    address = ask(sandbox, f"{outcome}.test", "A")
    assert rcode(address) == ("NXDOMAIN" if outcome == "nxdomain" else "NOERROR")


def test_address_answer_is_for_the_address_only(sandbox: Sandbox) -> None:
    """A domain without MX whose address cannot be looked up."""
    sandbox.set("half.test", {"dns": {"mx": 0, "address_answer": "servfail"}})
    assert rcode(ask(sandbox, "half.test", "MX")) == "NOERROR"
    assert rcode(ask(sandbox, "half.test", "A")) == "SERVFAIL"


def test_timeout_and_garbage_and_wrong_id(sandbox: Sandbox) -> None:
    """No answer, one that cannot be read, one to another question."""
    sandbox.set("silent.test", {"dns": {"answer": "timeout"}})
    with pytest.raises(dns.exception.Timeout):
        ask(sandbox, "silent.test", "MX", timeout_s=0.2)
    sandbox.set("garbage.test", {"dns": {"answer": "garbage"}})
    with pytest.raises(dns.exception.FormError):
        ask(sandbox, "garbage.test", "MX")
    sandbox.set("wrong.test", {"dns": {"answer": "wrong-id"}})
    with pytest.raises((dns.query.BadResponse, dns.exception.Timeout)):
        ask(sandbox, "wrong.test", "MX", timeout_s=0.2)


def test_truncated_answers_are_whole_by_tcp(sandbox: Sandbox) -> None:
    """UDP says that there is more, TCP gives it. What does not fit into UDP is truncated without being asked."""
    sandbox.set("tc.test", {"dns": {"truncate": True}})
    sandbox.set("large.test", {"dns": {"mx": 100}})
    for name, count in (("tc.test", 1), ("large.test", 100)):
        udp = ask(sandbox, name, "MX")
        assert udp.flags & dns.flags.TC
        assert records(udp) == []
        assert len(records(ask(sandbox, name, "MX", tcp=True))) == count


def test_no_answer_by_tcp(sandbox: Sandbox) -> None:
    """A server whose TCP does not work."""
    sandbox.set("udponly.test", {"dns": {"truncate": True, "tcp": False}})
    with pytest.raises((EOFError, dns.exception.DNSException, OSError)):
        ask(sandbox, "udponly.test", "MX", tcp=True, timeout_s=1)


def test_aliases(sandbox: Sandbox) -> None:
    """An alias comes with what it stands for; one of itself is a loop without an end."""
    sandbox.set("alias.test", {"dns": {"cname": "real.test"}})
    sandbox.set("loop.test", {"dns": {"cname": "loop.test"}})
    assert records(ask(sandbox, "alias.test", "MX")) == ["real.test.", "10 mx1.real.test."]
    assert records(ask(sandbox, "loop.test", "MX")) == ["loop.test."]


def test_slow_answers(sandbox: Sandbox) -> None:
    """`delay` is the wait before an answer, and others are answered meanwhile."""
    sandbox.set("slow.test", {"dns": {"delay": "200ms"}})
    before = time.monotonic()
    ask(sandbox, "slow.test", "MX")
    assert time.monotonic() - before >= 0.19


def test_ipv6(sandbox: Sandbox) -> None:
    """With `ipv6` a host has ::1 and speaks SMTP there; without `ipv4` nothing else."""
    sandbox.set("six.test", {"dns": {"ipv6": True, "ipv4": False}})
    assert records(ask(sandbox, "mx1.six.test", "AAAA")) == ["::1"]
    assert records(ask(sandbox, "mx1.six.test", "A")) == []
    with socket.create_connection(("::1", sandbox.smtp_port), 5) as client:
        assert client.recv(100).startswith(b"220 ")


def test_a_change_is_seen_at_once(sandbox: Sandbox) -> None:
    """Setting a personality forgets the answers kept from before."""
    assert len(records(ask(sandbox, "changing.test", "MX"))) == 1
    sandbox.set("changing.test", {"dns": {"mx": 3}})
    assert len(records(ask(sandbox, "changing.test", "MX"))) == 3


def test_reverse_names(sandbox: Sandbox) -> None:
    """The address of a host leads back to its name."""
    address = ipaddress.ip_address(sandbox.address("mx1.back.test"))
    assert records(ask(sandbox, address.reverse_pointer, "PTR")) == ["mx1.back.test."]
    assert rcode(ask(sandbox, "9.9.9.127.in-addr.arpa", "PTR")) == "NXDOMAIN"


def test_what_is_no_question_is_ignored(sandbox: Sandbox) -> None:
    """Garbage gets no answer and does no harm."""
    host, _, port = sandbox.dns.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for data in (b"", b"x", b"\0" * 12, b"\xff" * 600, dns.message.make_query("a.test", "MX").to_wire()[:-1]):
            udp.sendto(data, (host, int(port)))
    assert rcode(ask(sandbox, "alive.test", "MX")) == "NOERROR"
