"""The decisions of a lookup, with bytes and a clock of the test's own: no sockets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest

from mta.config.hosts import Endpoint
from mta.config.schema import Dns
from mta.config.units import Duration
from mta.delivery.dns_answer import MOST_RECORDS, Answer
from mta.delivery.dns_cache import Cache
from mta.delivery.dns_lookup import MOST_REST_S, REST_S, SILENT_AFTER, Ask, Lookup, Servers
from mta.delivery.dns_wire import MailHost
from tests.delivery.dns_helpers import response

ONE = Endpoint("192.0.2.1", 53)
TWO = Endpoint("192.0.2.2", 53)
SETTINGS = Dns(attempts=4)
MX_RECORDS = [("example.org", 300, "MX", "20 b.example.net."), ("example.org", 100, "MX", "10 A.example.net.")]
FOUND = (MailHost(10, "a.example.net"), MailHost(20, "b.example.net"))


def lookup(*endpoints: Endpoint, settings: Dns = SETTINGS, name: str = "example.org", kind: Any = "MX",
           servers: Servers | None = None, now: float = 0.0) -> Lookup:
    return Lookup(name, kind, settings, (servers or Servers(endpoints or (ONE,))).in_order(now))


def begun(search: Lookup) -> Ask:
    step = search.begin(0.0)
    assert isinstance(step, Ask)
    return step


def reply(ask: Ask, rcode: int = 0, **details: Any) -> bytes:
    return response(dns.message.from_wire(ask.wire), rcode, **details)


def answered(search: Lookup, ask: Ask, rcode: int = 0, now: float = 1.0, **details: Any) -> Any:
    return search.received(ask, reply(ask, rcode, **details), now)


# --- what answers mean ---------------------------------------------------------------------------------------------


def test_records_are_sorted_by_preference_and_live_as_long_as_the_shortest() -> None:
    """MX records come by preference, names in lower case; the least TTL of the set counts (RFC 2181 5.2)."""
    search = lookup()
    assert answered(search, begun(search), answer=MX_RECORDS) == Answer("ok", FOUND, 101.0)


def test_a_host_named_twice_keeps_its_best_preference() -> None:
    """Duplicates would be tried twice."""
    search = lookup()
    twice = [("example.org", 300, "MX", "30 mx.example.net."), ("example.org", 300, "MX", "5 MX.example.net.")]
    assert answered(search, begun(search), answer=twice).records == (MailHost(5, "mx.example.net"),)


def test_the_number_of_records_is_bounded() -> None:
    """A hostile domain cannot make us remember any number of hosts; the best ones stay."""
    search = lookup()
    many = [("example.org", 300, "MX", f"{n} mx{n}.example.net.") for n in range(500, 0, -1)]
    answer = answered(search, begun(search), answer=many)
    assert len(answer.records) == MOST_RECORDS
    assert answer.records[0] == MailHost(1, "mx1.example.net")


@pytest.mark.parametrize(("ttl", "kind", "lives"), [
    (1, "ok", 5.0), (10**6, "ok", 86_400.0), (1, "nxdomain", 5.0), (10**6, "nxdomain", 300.0), (60, "nodata", 60.0),
])
def test_answers_are_believed_within_bounds(ttl: int, kind: str, lives: float) -> None:
    """`min_ttl`, `max_ttl` and `negative_ttl` hold, whatever a server says."""
    search = lookup()
    ask = begun(search)
    if kind == "ok":
        answer = answered(search, ask, answer=[("example.org", ttl, "MX", "10 mx.example.net.")])
    else:
        answer = answered(search, ask, 3 if kind == "nxdomain" else 0, soa=ttl)
    assert (answer.kind, answer.expires) == (kind, 1.0 + lives)


def test_no_data_without_soa_is_not_kept_for_long() -> None:
    """RFC 2308 5: without an SOA nothing says for how long; the shortest time is taken, and it proves nothing."""
    search = lookup()
    assert answered(search, begun(search)) == Answer("nodata", (), 6.0, proven=False)


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 9, 11, 16, 23])
def test_servers_that_cannot_answer_never_say_that_a_name_does_not_exist(rcode: int) -> None:
    """SERVFAIL, REFUSED, FORMERR and all the others are failures, for later: a broken resolver bounces no mail."""
    search = lookup()
    step = answered(search, begun(search), rcode)
    if isinstance(step, Ask):  # once more without EDNS
        step = answered(search, step, rcode)
    assert step.kind == "failure"
    assert step.expires == 1.0 + SETTINGS.failure_ttl
    assert "192.0.2.1:53" in step.detail


def test_a_referral_is_not_an_answer() -> None:
    """A server without recursion refers to others: that says nothing of the name's records."""
    search = lookup()
    ask = begun(search)
    message = dns.message.make_response(dns.message.from_wire(ask.wire))
    message.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "a.example.net."))
    step = search.received(ask, message.to_wire(), 1.0)
    assert isinstance(step, Answer)
    assert step.kind == "failure"
    assert "no recursion" in step.detail


def test_a_referral_of_a_recursive_server_is_not_believed_either() -> None:
    """NS records in place of an SOA: it has not looked the name up, whatever its flags say."""
    search = lookup()
    ask = begun(search)
    message = dns.message.make_response(dns.message.from_wire(ask.wire))
    message.flags |= dns.flags.RA
    message.authority.append(dns.rrset.from_text("org.", 60, "IN", "NS", "a.example.net."))
    step = search.received(ask, message.to_wire(), 1.0)
    assert isinstance(step, Answer)
    assert step.kind == "failure"


def test_an_empty_answer_of_a_server_without_recursion_is_not_believed() -> None:
    """Neither RA nor AA nor SOA: an authority for something else, asked by mistake."""
    search = lookup()
    assert answered(search, begun(search), ra=False).kind == "failure"
    search = lookup()
    assert answered(search, begun(search), ra=False, aa=True).kind == "nodata"


# --- CNAME ---------------------------------------------------------------------------------------------------------


def test_cnames_in_the_answer_are_followed() -> None:
    """RFC 1034 3.6.2: the records of the last name are the answer, for the shortest TTL on the way."""
    search = lookup()
    chain = [("example.org", 50, "CNAME", "b.example.org."), ("b.example.org", 90, "CNAME", "C.example.org."),
             ("c.example.org", 300, "MX", "10 mx.example.net.")]
    assert answered(search, begun(search), answer=chain) == Answer("ok", (MailHost(10, "mx.example.net"),), 51.0)


def test_records_of_other_names_are_not_taken() -> None:
    """What a server adds of its own accord is left: only the name that was asked for, and where it leads, count."""
    search = lookup()
    other = [("evil.example", 300, "MX", "10 mx.example.net.")]
    assert answered(search, begun(search), answer=other).kind == "nodata"


def test_a_cname_without_its_target_is_asked_for() -> None:
    """Some servers return the CNAME alone: the target is asked for, and the CNAME's TTL still bounds the answer."""
    search = lookup()
    step = answered(search, begun(search), answer=[("example.org", 50, "CNAME", "b.example.org.")])
    assert isinstance(step, Ask)
    assert dns.message.from_wire(step.wire).question[0].to_text() == "b.example.org. IN MX"
    last = answered(search, step, answer=[("b.example.org", 300, "MX", "10 mx.example.net.")])
    assert last == Answer("ok", (MailHost(10, "mx.example.net"),), 51.0)


@pytest.mark.parametrize(("validates", "first", "second", "authentic"), [
    (True, True, True, True), (True, False, True, False), (True, True, False, False), (False, True, True, False)])
def test_an_answer_is_authentic_when_all_of_it_is(validates: bool, first: bool, second: bool, authentic: bool) -> None:
    """AD counts when the servers are said to validate, and has to be in the answer to each question on the way."""
    search = lookup(settings=Dns(validates=validates))
    step = answered(search, begun(search), ad=first, answer=[("example.org", 50, "CNAME", "b.example.org.")])
    last = answered(search, step, ad=second, answer=[("b.example.org", 300, "MX", "10 mx.example.net.")])
    assert (last.kind, last.authentic) == ("ok", authentic)


def test_a_cname_to_nothing_is_nothing() -> None:
    """An SOA beside the CNAME says that its target was looked up and has no such records."""
    search = lookup()
    cname = [("example.org", 50, "CNAME", "b.example.org.")]
    assert answered(search, begun(search), soa=60, answer=cname) == Answer("nodata", (), 51.0)
    search = lookup()
    assert answered(search, begun(search), 3, soa=60, answer=cname) == Answer("nxdomain", (), 51.0)


def test_servers_start_afresh_behind_a_cname() -> None:
    """A server that failed for the one name may know the other, and the attempts are counted for each."""
    search = lookup(ONE, TWO, settings=Dns(attempts=2))
    second = answered(search, begun(search), 2)
    step = answered(search, second, answer=[("example.org", 50, "CNAME", "b.example.org.")])
    asked = []
    while isinstance(step, Ask):
        asked.append(step.server.endpoint)
        step = answered(search, step, 2)
    assert asked == [ONE, TWO]


def test_cname_loops_end() -> None:
    """A loop, in one answer or over several, fails for now with a text that shows it."""
    search = lookup()
    loop = [("example.org", 50, "CNAME", "b.example.org."), ("b.example.org", 50, "CNAME", "example.org.")]
    answer = answered(search, begun(search), answer=loop)
    assert answer.kind == "failure"
    assert "loop of CNAMEs, example.org -> b.example.org -> example.org" in answer.detail
    search = lookup()
    step = answered(search, begun(search), answer=loop[:1])
    answer = answered(search, step, answer=loop[1:])
    assert answer.kind == "failure"
    assert "loop of CNAMEs" in answer.detail


@pytest.mark.parametrize(("length", "kind"), [(10, "ok"), (11, "failure")])
@pytest.mark.parametrize("whole", [True, False])
def test_ten_cnames_are_followed_and_no_more(length: int, kind: str, whole: bool) -> None:
    """Postfix follows ten; more is a mistake of the domain, in one answer or one at a time."""
    names = ["example.org", *(f"n{n}.example.org" for n in range(length))]
    chain = [(name, 300, "CNAME", f"{target}.") for name, target in pairwise(names)]
    chain.append((names[-1], 300, "MX", "10 mx.example.net."))
    search = lookup()
    step: Any = begun(search)
    for part in [chain] if whole else [[record] for record in chain]:
        if isinstance(step, Ask):
            step = answered(search, step, answer=part)
    assert step.kind == kind


# --- servers -------------------------------------------------------------------------------------------------------


def test_the_next_server_is_asked_after_silence() -> None:
    """Servers in the order of the configuration, in turn, until the attempts are used up."""
    search = lookup(ONE, TWO)
    ask, asked = begun(search), []
    step: Any = ask
    while isinstance(step, Ask):
        asked.append(step.server.endpoint)
        step = search.timed_out(step, 3.0 * len(asked))
    assert asked == [ONE, TWO, ONE, TWO]
    assert step.kind == "failure"
    assert step.detail == "192.0.2.1:53: no answer in 3s; 192.0.2.2:53: no answer in 3s"


def test_every_question_has_an_identifier_of_its_own() -> None:
    """Also when the same is asked again: an answer to the first is not taken for one to the second."""
    identifiers = {begun(lookup()).identifier for _ in range(50)}
    assert len(identifiers) > 40


def test_a_late_answer_of_the_first_server_counts() -> None:
    """While the second server is waited for, the first may still be the faster one."""
    search = lookup(ONE, TWO)
    first = begun(search)
    second = search.timed_out(first, 3.0)
    assert isinstance(second, Ask)
    assert answered(search, first, now=3.5, answer=MX_RECORDS).kind == "ok"


def test_a_useless_late_answer_does_not_disturb_the_question_under_way() -> None:
    """SERVFAIL of the first server while the second one works on it: go on waiting for the second."""
    search = lookup(ONE, TWO)
    first = begun(search)
    second = search.timed_out(first, 3.0)
    assert isinstance(second, Ask)
    assert answered(search, first, 2, now=3.5) is None
    assert answered(search, second, now=3.6, answer=MX_RECORDS).kind == "ok"


def test_another_server_may_know_what_one_cannot_say() -> None:
    """After SERVFAIL or REFUSED the others are asked at once, each once; when all failed that is the result."""
    search = lookup(ONE, TWO)
    second = answered(search, begun(search), 2)
    assert isinstance(second, Ask)
    assert second.server.endpoint == TWO
    last = answered(search, second, 5)
    assert last.kind == "failure"
    assert last.detail == "192.0.2.1:53: SERVFAIL; 192.0.2.2:53: REFUSED"


def test_answers_to_other_questions_are_not_looked_at() -> None:
    """A wrong identifier or question is a forgery or a stray: the true answer may still come (CVE-2023-29483)."""
    search = lookup()
    ask = begun(search)
    good = reply(ask, answer=MX_RECORDS)
    wrong_identifier = bytes((good[0] ^ 1,)) + good[1:]
    other = dns.message.make_query("example.net", "MX", id=ask.identifier)
    wrong_question = response(other, 3, soa=60)
    wrong_type = response(dns.message.make_query("example.org", "A", id=ask.identifier), 3, soa=60)
    for stray in (b"", b"\0", wrong_identifier, wrong_question, wrong_type):
        assert search.received(ask, stray, 1.0) is None
    answer = search.received(ask, good, 1.0)
    assert isinstance(answer, Answer)
    assert answer.kind == "ok"


def test_letter_case_of_the_question_may_change() -> None:
    """Names are the same whatever their case, also in the question that a server repeats."""
    search = lookup(name="Example.ORG")
    ask = begun(search)
    shouted = dns.message.make_response(dns.message.make_query("EXAMPLE.org", "MX", id=ask.identifier))
    shouted.flags |= dns.flags.RA
    shouted.answer.append(dns.rrset.from_text("EXAMPLE.org.", 60, "IN", "MX", "10 mx.example.net."))
    answer = search.received(ask, shouted.to_wire(), 1.0)
    assert isinstance(answer, Answer)
    assert answer.kind == "ok"


def test_garbage_with_the_right_identifier_moves_on() -> None:
    """A server that answers nonsense is left for the next; alone, it is a failure, never a crash."""
    search = lookup(ONE, TWO)
    ask = begun(search)
    good = reply(ask, answer=MX_RECORDS)
    step = search.received(ask, good[:-3], 1.0)
    assert isinstance(step, Ask)
    assert step.server.endpoint == TWO
    last = search.received(step, step.wire[:2] + b"\xff" * 40, 1.0)
    assert isinstance(last, Answer)
    assert last.kind == "failure"
    assert "unreadable answer" in last.detail


def test_truncated_answers_are_asked_for_again_over_tcp() -> None:
    """RFC 2181 9: nothing of a truncated answer is used; the same server is asked over TCP."""
    search = lookup(ONE, TWO)
    step = answered(search, begun(search), tc=True, answer=MX_RECORDS[:1])
    assert isinstance(step, Ask)
    assert step.over_tcp
    assert step.server.endpoint == ONE
    assert answered(search, step, answer=MX_RECORDS).records == FOUND


def test_one_tcp_connection_is_enough() -> None:
    """A truncated answer to an earlier question, late, while TCP is under way, starts no second connection."""
    search = lookup()
    first = begun(search)
    second = search.timed_out(first, 3.0)
    assert isinstance(second, Ask)
    over_tcp = answered(search, second, tc=True)
    assert over_tcp.over_tcp
    assert answered(search, first, tc=True) is None


def test_only_the_question_under_way_times_out() -> None:
    """What happens to earlier ones, which are still listened to, asks nobody again."""
    search = lookup(ONE, TWO)
    first = begun(search)
    assert isinstance(search.timed_out(first, 3.0), Ask)
    assert search.timed_out(first, 3.1) is None
    assert search.broken(first, "connection refused", 3.1) is None


@pytest.mark.parametrize("fault", ["broken", "silent", "truncated"])
def test_a_server_whose_tcp_fails_is_left(fault: str) -> None:
    """No answer is made of what came truncated; another server is asked."""
    search = lookup(ONE, TWO)
    over_tcp = answered(search, begun(search), tc=True)
    if fault == "broken":
        step = search.broken(over_tcp, "connection refused", 1.0)
    elif fault == "silent":
        step = search.timed_out(over_tcp, 4.0)
    else:
        step = answered(search, over_tcp, tc=True)
    assert isinstance(step, Ask)
    assert (step.server.endpoint, step.over_tcp) == (TWO, False)


def test_edns_is_given_up_where_it_is_not_known() -> None:
    """FORMERR to a question with EDNS: asked again without (RFC 6891 7), and the server is remembered for an hour."""
    servers = Servers([ONE])
    search = lookup(servers=servers)
    first = begun(search)
    again = answered(search, first, 1)
    assert isinstance(again, Ask)
    assert dns.message.from_wire(first.wire).edns == 0
    assert dns.message.from_wire(again.wire).edns == -1
    assert answered(search, again, answer=MX_RECORDS).kind == "ok"
    for now, edns in ((3000.0, -1), (4000.0, 0)):
        ask = lookup(servers=servers, now=now).begin(now)
        assert isinstance(ask, Ask)
        assert dns.message.from_wire(ask.wire).edns == edns


def test_refusal_without_question_section_is_understood() -> None:
    """Some servers answer FORMERR or REFUSED with a bare header."""
    search = lookup()
    ask = begun(search)
    step = search.received(ask, ask.wire[:2] + b"\x80\x05" + b"\0" * 8, 1.0)
    assert isinstance(step, Answer)
    assert "REFUSED" in step.detail


def test_a_dead_server_is_asked_last_after_a_while() -> None:
    """Some silence in a row, and a server no longer costs every name its timeout; it comes back when it answers."""
    servers = Servers([ONE, TWO])
    for _ in range(SILENT_AFTER):
        assert servers.in_order(0.0)[0].endpoint == ONE
        search = lookup(servers=servers)
        search.timed_out(begun(search), 0.0)
    assert [server.endpoint for server in servers.in_order(1.0)] == [TWO, ONE]


def test_an_answer_ends_the_count_of_silence() -> None:
    """Lost packets now and then do not make a server dead; any answer shows that it lives."""
    servers = Servers([ONE, TWO])
    for _ in range(SILENT_AFTER):
        search = lookup(servers=servers)
        first = begun(search)
        search.timed_out(first, 0.0)
        answered(search, first, 2)
    assert servers.in_order(1.0)[0].endpoint == ONE


def test_one_lookup_at_a_time_tries_a_dead_server_again() -> None:
    """After its rest one lookup probes it; the others do not wait for it meanwhile. Rests grow, up to a bound."""
    servers = Servers([ONE, TWO])
    dead = servers.all[0]
    dead.silent(0.0, refused=True)
    now, rests = 0.0, []
    for _ in range(8):
        assert servers.in_order(now)[0].endpoint == TWO
        rests.append(dead.rests_until - now)
        now = dead.rests_until
        assert servers.in_order(now)[0].endpoint == ONE  # the probe
        dead.silent(now + 3.0)
    assert rests[:3] == [REST_S, 2 * REST_S, 4 * REST_S]
    assert max(rests) == MOST_REST_S
    dead.answered()
    assert servers.in_order(now)[0].endpoint == ONE


def test_many_lookups_that_fail_together_count_once() -> None:
    """A burst of silence at one moment is one outage, not hundreds."""
    servers = Servers([ONE, TWO])
    for _ in range(300):
        servers.all[0].silent(3.0)
    assert servers.all[0].rests_until == 3.0 + REST_S


def test_a_refused_port_is_called_so() -> None:
    """With one server the lookup waits for its time; that nobody listens is still what the operator reads."""
    search = lookup(ONE)
    step: Ask | Answer[Any] | None = begun(search)
    while isinstance(step, Ask):
        assert search.broken(step, "connection refused", 0.0) is None
        step = search.timed_out(step, 3.0)
    assert isinstance(step, Answer)
    assert step.detail == f"{ONE}: connection refused"


def test_a_refused_port_turns_to_the_next_server_at_once() -> None:
    """ICMP says that nobody listens there: no need to wait."""
    search = lookup(ONE, TWO)
    step = search.broken(begun(search), "connection refused", 0.0)
    assert isinstance(step, Ask)
    assert step.server.endpoint == TWO
    servers = Servers([ONE, TWO])
    search = lookup(servers=servers)
    search.broken(begun(search), "connection refused", 0.0)
    assert servers.in_order(1.0)[0].endpoint == TWO  # and the next names ask it first


def test_a_resolver_that_is_being_restarted_is_waited_for() -> None:
    """The only server refuses at once: the question is repeated after the usual time instead of failing within it."""
    search = lookup()
    ask = begun(search)
    assert search.broken(ask, "connection refused", 0.0) is None
    again = search.timed_out(ask, 3.0)
    assert isinstance(again, Ask)
    assert answered(search, again, answer=MX_RECORDS).kind == "ok"


@pytest.mark.parametrize("act", [
    lambda search, ask: search.timed_out(ask, 9.0),
    lambda search, ask: search.broken(ask, "connection refused", 9.0),
    lambda search, ask: answered(search, ask, 2),
    lambda search, ask: search.received(ask, ask.wire[:2] + b"\xff" * 30, 9.0),
])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_lookup_ends(act: Callable[[Lookup, Ask], Any], number: int) -> None:
    """Whatever goes wrong, and however often, a lookup asks a bounded number of questions and then fails."""
    search = lookup(*(Endpoint(f"192.0.2.{n}", 53) for n in range(number)))
    ask = begun(search)
    questions = 1
    while True:
        step = act(search, ask)
        if step is None:  # waiting: then the time runs out
            step = search.timed_out(ask, 9.0)
        if not isinstance(step, Ask):
            break
        questions += 1
        ask = step
    assert step is not None
    assert step.kind == "failure"
    assert questions <= SETTINGS.attempts


# --- memory --------------------------------------------------------------------------------------------------------


def test_cache_keeps_what_was_used_last() -> None:
    """The bound holds, and what is asked for often stays."""
    cache = Cache(2)
    answers: list[Answer[Any]] = [Answer("nodata", (), 100.0, name) for name in "abc"]
    a, b, c = answers
    cache.put(("a", "A"), a)
    cache.put(("b", "A"), b)
    assert cache.get(("a", "A"), 0.0) is a
    cache.put(("c", "A"), c)
    assert cache.get(("b", "A"), 0.0) is None
    assert cache.get(("a", "A"), 0.0) is a
    assert cache.get(("c", "A"), 0.0) is c
    assert len(cache) == 2


def test_cache_believes_nothing_beyond_its_time() -> None:
    """An answer is gone at the moment it expires."""
    cache = Cache(10)
    cache.put(("a", "MX"), Answer("ok", (), 100.0))
    assert cache.get(("a", "MX"), 99.9) is not None
    assert cache.get(("a", "A"), 99.9) is None
    assert cache.get(("a", "MX"), 100.0) is None
    assert len(cache) == 0


def test_failures_are_remembered_for_their_own_time() -> None:
    """RFC 9520: a failing name is not asked for again and again."""
    search = lookup(settings=Dns(failure_ttl=Duration(7)))
    assert answered(search, begun(search), 2).expires == 8.0
