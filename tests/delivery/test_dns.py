"""The resolver with real sockets, in a process patched by gevent, against a server that misbehaves as told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import pytest

from mta.config.hosts import Endpoint
from tests.delivery.dns_helpers import (
    Behaviour,
    DnsServer,
    Question,
    ResolverProcess,
    late,
    rcode,
    resolver_process,
    response,
    silent,
)

MX = ["20 mx2.example.org.", "10 mx1.example.org."]
SHORT_S = 0.2
SORTED = [[10, "mx1.example.org"], [20, "mx2.example.org"]]


@pytest.fixture(scope="module")
def process() -> Iterator[ResolverProcess]:
    with resolver_process() as process:
        yield process


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer({("example.org", "MX"): MX}) as server:
        yield server


def settings(*servers: DnsServer, **more: Any) -> dict[str, Any]:
    """Patient, since the machine may be busy; what is about running out of time says `timeout=SHORT_S`."""
    return {"servers": [server.endpoint for server in servers], "timeout": 10.0, **more}


def mx_query(process: ResolverProcess, *servers: DnsServer, name: str = "example.org", **more: Any) -> Any:
    return process.run(settings(*servers, **more), [["query", name, "MX"]])[0]


def test_records_come_from_the_server_once(process: ResolverProcess, server: DnsServer) -> None:
    """A second query is answered from memory, for as long as the TTL says."""
    first, second, statistics = process.run(
        settings(server), [["query", "example.org", "MX"], ["query", "example.org", "MX"], ["statistics"]])
    assert first["kind"] == second["kind"] == "ok"
    assert first["records"] == second["records"] == SORTED
    assert 298 < first["ttl"] <= 300
    assert server.count("example.org", "MX") == 1
    assert statistics["cached"] == 1
    assert statistics["questions"] == 1


def test_all_types_and_kinds(process: ResolverProcess, server: DnsServer) -> None:
    """Addresses of both families, absence of a type, absence of a name."""
    server.zone[("example.org", "A")] = ["192.0.2.1", "192.0.2.2"]
    server.zone[("example.org", "AAAA")] = ["2001:db8::1"]
    server.zone[("other.org", "A")] = ["192.0.2.3"]
    a, aaaa, nodata, nxdomain, impossible = process.run(settings(server), [
        ["query", "example.org", "A"], ["query", "example.org", "AAAA"], ["query", "other.org", "MX"],
        ["query", "missing.org", "MX"], ["query", "x" * 64, "MX"],
    ])
    assert (a["kind"], a["records"]) == ("ok", ["192.0.2.1", "192.0.2.2"])
    assert (aaaa["kind"], aaaa["records"]) == ("ok", ["2001:db8::1"])
    assert (nodata["kind"], nxdomain["kind"], impossible["kind"]) == ("nodata", "nxdomain", "nxdomain")
    assert 58 < nodata["ttl"] <= 60


def test_many_who_ask_for_one_name_are_one_question(process: ResolverProcess, server: DnsServer) -> None:
    """Single flight: 50 greenlets at once, one question, one answer for all."""
    server.behaviour["example.org"] = late(0.05, server.answer)
    answers, = process.run(settings(server), [["together", [["example.org", "MX"]] * 50]])
    assert [answer["records"] for answer in answers] == [SORTED] * 50
    assert server.count("example.org", "MX") == 1


def test_one_who_gives_up_does_not_take_the_others_along(process: ResolverProcess, server: DnsServer) -> None:
    """A greenlet that is killed while it waits leaves the lookup to whoever asks next."""
    server.behaviour["example.org"] = late(0.05, server.answer)
    _, answer = process.run(settings(server), [["abandon", "example.org", "MX"], ["query", "example.org", "MX"]])
    assert answer["records"] == SORTED
    assert server.count("example.org", "MX") == 1


def test_a_burst_of_names_is_answered_whole(process: ResolverProcess, server: DnsServer) -> None:
    """More names than are asked for at once: the rest waits its turn, nothing is lost, every port is its own."""
    names = [f"d{n}.example.org" for n in range(300)]
    server.zone.update({(name, "MX"): [f"10 mx.{name}."] for name in names})
    answers, = process.run(settings(server), [["together", [[name, "MX"] for name in names]]])
    assert [answer["records"] for answer in answers] == [[[10, f"mx.{name}"]] for name in names]
    ports = [port for _, _, _, port in server.asked]
    assert len(set(ports)) > 270  # the kernel draws them; some come again


def test_names_that_get_no_answer_do_not_hold_up_the_others(process: ResolverProcess, server: DnsServer) -> None:
    """More dead names at once than may be asked for in a burst: those behind them wait a moment, not for their end."""
    dead = [f"dead{n}.example.org" for n in range(250)]
    with DnsServer(behaviour=dict.fromkeys(dead, silent)) as other:
        other.zone.update(server.zone)
        answers, = process.run(settings(other, attempts=1, timeout=4.0), [
            ["together", [[name, "MX"] for name in [*dead, "example.org"]]]])
    assert answers[-1]["records"] == SORTED
    assert answers[-1]["took_s"] < min(answer["took_s"] for answer in answers[:-1])
    assert {answer["kind"] for answer in answers[:-1]} == {"failure"}


def test_truncated_answers_come_over_tcp(process: ResolverProcess, server: DnsServer) -> None:
    """500 MX hosts fit in no datagram: asked for again over TCP, read whole, the best ones kept."""
    server.zone[("example.org", "MX")] = [f"{n} mx{n}.example.org." for n in range(500)]
    answer = mx_query(process, server)
    assert answer["kind"] == "ok"
    assert answer["records"][0] == [0, "mx0.example.org"]
    assert len(answer["records"]) == 100
    assert [(kind, over_tcp) for _, kind, over_tcp, _ in server.asked] == [("MX", False), ("MX", True)]


def test_the_hub_goes_on_while_large_answers_are_read(process: ResolverProcess, server: DnsServer) -> None:
    """Nothing keeps the hub for long: answers of 500 hosts each come in while another greenlet keeps time."""
    names = [f"big{n}.example.org" for n in range(4)]
    server.zone.update({(name, "MX"): [f"{n} mx{n}.example.org." for n in range(500)] for name in names})
    worst, = process.run(settings(server), [["lag", [[name, "MX"] for name in names]]])
    assert worst < 2.0  # each takes some 2 ms; this is a guard against work that grows with the square


def test_tcp_that_ends_early_is_a_failure(process: ResolverProcess, server: DnsServer) -> None:
    """A connection that closes without an answer: the truncated answer is not made do with."""
    server.behaviour["example.org"] = lambda question: (
        None if question.over_tcp else response(question.message, tc=True, answer=[("example.org", 9, "MX", MX[0])]))
    answer = mx_query(process, server)
    assert answer["kind"] == "failure"
    assert "over TCP" in answer["detail"]


@pytest.mark.parametrize("code", [1, 2, 4, 5])
def test_errors_of_servers_are_failures(process: ResolverProcess, server: DnsServer, code: int) -> None:
    """FORMERR, SERVFAIL, NOTIMP, REFUSED: nothing is known, and that is remembered for `failure_ttl`."""
    server.behaviour["example.org"] = rcode(code)
    first, second = process.run(
        settings(server, failure_ttl=20.0), [["query", "example.org", "MX"], ["query", "example.org", "MX"]])
    assert first["kind"] == second["kind"] == "failure"
    assert 18 < first["ttl"] <= 20
    assert server.count("example.org", "MX") <= 2


def test_the_second_server_answers_for_a_failing_one(process: ResolverProcess, server: DnsServer) -> None:
    """SERVFAIL of one is not the end while another may know."""
    with DnsServer(behaviour={"example.org": rcode(2)}) as failing:
        answer = mx_query(process, failing, server)
    assert answer["records"] == SORTED
    assert answer["took_s"] < 5.0  # at once, not after the timeout


def test_the_second_server_answers_for_a_silent_one(process: ResolverProcess, server: DnsServer) -> None:
    """One dead server of two costs its timeout at first, and nothing once it is known for dead."""
    names = [f"d{n}.example.org" for n in range(5)]
    server.zone.update({(name, "MX"): MX for name in names})
    with DnsServer(behaviour=dict.fromkeys(names, silent)) as dead:
        answers = process.run(settings(dead, server, timeout=SHORT_S), [["query", name, "MX"] for name in names])
    assert [answer["records"] for answer in answers] == [SORTED] * 5
    assert all(answer["took_s"] > 0.9 * SHORT_S for answer in answers[:3])
    assert len(dead.asked) == 3


def test_a_port_where_nobody_listens_costs_no_time(process: ResolverProcess, server: DnsServer) -> None:
    """ICMP's word is taken: the next server is asked at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{closed.getsockname()[1]}"
    answer = process.run({"servers": [endpoint, server.endpoint], "timeout": 10.0}, [["query", "example.org", "MX"]])[0]
    assert answer["records"] == SORTED
    assert answer["took_s"] < 5.0


def test_silence_ends_after_the_attempts(process: ResolverProcess, server: DnsServer) -> None:
    """`attempts` questions of `timeout` each, then a failure that names the server."""
    server.behaviour["example.org"] = silent
    answer = mx_query(process, server, attempts=3, timeout=SHORT_S)
    assert answer["kind"] == "failure"
    assert answer["detail"] == f"{server.endpoint}: no answer in 200ms"
    assert answer["took_s"] > 2.9 * SHORT_S
    assert server.count("example.org", "MX") == 3


def test_a_lost_datagram_is_asked_for_again(process: ResolverProcess, server: DnsServer) -> None:
    """UDP loses packets; one server is enough to bear it."""
    server.behaviour["example.org"] = lambda question: None if question.number == 1 else server.answer(question)
    assert mx_query(process, server, timeout=SHORT_S)["records"] == SORTED


def test_an_answer_after_its_time_still_counts(process: ResolverProcess, server: DnsServer) -> None:
    """Slower than the timeout, but there before the attempts are over: taken, from whichever question it was."""
    with DnsServer(behaviour={"example.org": late(0.3, server.answer)}) as slow:
        server.behaviour["example.org"] = silent
        answer = mx_query(process, slow, server, attempts=2, timeout=SHORT_S)
    assert answer["records"] == SORTED
    assert len(slow.asked) == 1


def _forged(question: Question) -> bytes:
    """The answer that somebody else would like us to believe."""
    return response(question.message, answer=[("example.org", 9, "MX", "0 evil.example.")])


def _other_identifier(question: Question) -> bytes:
    wire = _forged(question)
    return bytes((wire[0] ^ 0x55,)) + wire[1:]


def _other_question(question: Question) -> bytes:
    other = dns.message.make_query("example.net", "MX", id=question.message.id)
    return response(other, answer=[("example.net", 9, "MX", "0 evil.example.")])


@pytest.mark.parametrize("stray", [_other_identifier, _other_question])
def test_strays_are_passed_over(process: ResolverProcess, server: DnsServer, stray: Any) -> None:
    """A wrong identifier or question is not our answer; the right one behind it is."""
    server.behaviour["example.org"] = lambda question: [stray(question), server.answer(question)]
    answer = mx_query(process, server)
    assert answer["records"] == SORTED
    assert server.count("example.org", "MX") == 1


def test_answers_from_elsewhere_are_not_received(process: ResolverProcess, server: DnsServer) -> None:
    """Another machine, or another port, cannot answer in place of the server, even with all else right."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))

        def behave(question: Question) -> bytes:
            other.sendto(_forged(question), ("127.0.0.1", server.asked[-1][3]))
            return server.answer(question)

        server.behaviour["example.org"] = behave
        assert mx_query(process, server)["records"] == SORTED


@pytest.mark.parametrize("garbage", [
    lambda wire: wire[:2] + b"\xff" * 60,
    lambda wire: wire[:-7],
    lambda wire: wire[:2],
    lambda wire: wire + b"trailing",
    lambda wire: wire * 60,
])
def test_garbage_is_a_failure(process: ResolverProcess, server: DnsServer, garbage: Any) -> None:
    """Bytes that make no sense, or end too soon, or go on too long: temporary, never a crash, never believed."""
    server.behaviour["example.org"] = lambda question: garbage(server.answer(question))
    answer = mx_query(process, server)
    assert answer["kind"] == "failure"
    assert "unreadable" in answer["detail"]


def _alias(name: str, target: str) -> Behaviour:
    return lambda question: response(question.message, answer=[(name, 60, "CNAME", f"{target}.")])


def test_cname_chains_are_followed_and_loops_end(process: ResolverProcess, server: DnsServer) -> None:
    """Over several questions, since this server returns one CNAME at a time."""
    aliases = {"a.org": "b.org", "b.org": "example.org", "loop.org": "pool.org", "pool.org": "loop.org"}
    for name, target in aliases.items():
        server.behaviour[name] = _alias(name, target)
    chain, loop = process.run(settings(server), [["query", "a.org", "MX"], ["query", "loop.org", "MX"]])
    assert chain["records"] == SORTED
    assert 58 < chain["ttl"] <= 60
    assert loop["kind"] == "failure"
    assert "loop of CNAMEs" in loop["detail"]


def test_nothing_is_left_open(process: ResolverProcess, server: DnsServer) -> None:
    """Sockets end with their lookup, however it ended."""
    server.behaviour["silent.org"] = silent
    server.behaviour["failing.org"] = rcode(2)
    server.behaviour["tcp.org"] = lambda question: None if question.over_tcp else response(question.message, tc=True)
    names = ["example.org", "silent.org", "failing.org", "tcp.org", "missing.org"] * 3
    before, _, after = process.run(settings(server, attempts=2, timeout=SHORT_S), [
        ["open files"], ["together", [[name, "MX"] for name in names]], ["open files"]])
    assert after <= before


def test_a_closed_resolver_keeps_nobody_waiting(process: ResolverProcess, server: DnsServer) -> None:
    """What is asked of it afterwards is a failure at once."""
    _, answer = process.run(settings(server), [["close"], ["query", "example.org", "MX"]])
    assert answer["kind"] == "failure"
    assert answer["took_s"] < 5.0
    assert server.asked == []


def test_system_servers_are_read_from_resolv_conf(process: ResolverProcess, tmp_path: Path) -> None:
    """`nameserver` lines of both families; the search list is not looked at; none means the local machine."""
    path = tmp_path / "resolv.conf"
    path.write_text("# made by hand\nsearch example.org\nnameserver 192.0.2.1\nnameserver 2001:db8::1 # second\n"
                    "nameserver\nnameserver not.an.address\n\noptions edns0\n")
    found, none = process.run({}, [["system servers", str(path)], ["system servers", str(tmp_path / "missing")]])
    assert found == [str(Endpoint("192.0.2.1", 53)), str(Endpoint("2001:db8::1", 53))]
    assert none == ["127.0.0.1:53"]
