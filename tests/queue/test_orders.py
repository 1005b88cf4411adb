"""Rules of orders: what they mean, in which order they count, and that they survive being written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mta.queue.filter import Filter
from mta.queue.ids import format_id
from mta.queue.orders import (
    HELD_US,
    Book,
    Order,
    OrderError,
    Orders,
    due_of,
    facts_of,
    queue_facts,
    same_mail,
)
from mta.queue.records import Attempt, Delivery, Message, Recipient, detour, queue_name
from mta.queue.scheduler import domain_of, pool_of

NOW_US = 1_700_000_000_000_000


def order(kind: Any, expression: str = "", **fields: Any) -> Order:
    """One that root gave now."""
    return Order(0, kind, "root", NOW_US, expression, **fields)


def orders(*given: Order) -> Orders:
    """All of these in force."""
    found = Orders()
    for one in given:
        found, _ = found.give(one)
    return found


def book(*given: Order) -> Book:
    """The same, compiled."""
    return Book(orders(*given))


def delivery(**fields: Any) -> Delivery:
    """One that is an hour old and failed once."""
    message = Message(NOW_US << 10, "a@sender.test", NOW_US - 3_600_000_000, None, size=1000)
    one = Delivery(message, 0, "d.test", "d.test", [Recipient("u1@d.test"), Recipient("u2@d.test")], NOW_US, 1,
                   history=[Attempt(NOW_US, "mx", "451 4.7.1 Greylisted")])
    return replace(one, **fields)


def test_the_name_of_a_queue_says_all_that_filters_ask_of_it() -> None:
    """As `queue_name` made it, whatever is left out."""
    for labels in (("d.test",), ("d.test", "t"), ("d.test", "t", "c"), ("d.test", "", "c", "p"),
                   ("d.test", "t", "c", "p", "bulk"), ("d.test", "", "", "", "transactional")):
        facts = queue_facts(queue_name(*labels))
        whole = (*labels, *("", "", "", "normal")[len(labels) - 1:])
        assert (facts.domain, facts.tenant, facts.campaign, facts.pool, facts.priority) == whole


def test_a_pause_of_queues_holds_them_as_a_whole() -> None:
    """The first that matches is named; a queue that does not match costs nothing later."""
    found = book(order("pause", "tenant=acme", reason="x"), order("pause", "domain=d.test"))
    ruling = found.ruling(queue_facts("acme@d.test"), NOW_US)
    assert ruling.held is not None
    assert ruling.held.reason == "x"
    assert found.ruling(queue_facts("other@e.test"), NOW_US) == (None, None, (), False)


def test_a_suspension_by_an_expression_holds_mail_and_one_of_a_target_does_not() -> None:
    """The former is a pause by another name; the latter is about the way, and no matter of a queue."""
    found = book(order("suspend", "campaign=spring"), order("suspend", target="domain:d.test"),
                 order("suspend", "sender=a@*"))
    held = found.ruling(queue_facts("spring:@d.test"), NOW_US).held
    assert held is not None
    assert (held.kind, held.filter) == ("suspend", "campaign=spring")
    ruling = found.ruling(queue_facts("d.test"), NOW_US)
    assert (ruling.held, [one.order.filter for one in ruling.each]) == (None, ["sender=a@*"])
    assert found.holds_singly(queue_facts("d.test"), delivery(), NOW_US) is not None


@pytest.mark.parametrize(("one", "other", "same"), [
    ("tenant=acme", ' Tenant = "ACME"', True), ("age>2h", 'age>"2h"', True), ("", "", True), ("", "tenant=a", False),
    ("tenant=acme", "tenant=acme2", False), ("tenant=acme", "tenant!=acme", False),
    (r"reply~\d", r"reply~\D", False), (r"reply~\d", r'reply ~ "\\d"', True),
    ("tenant=a and not domain=b", "tenant=a AND NOT domain=B", True), ('tenant="and"', "tenant=and", True),
    ("tenant=a and domain=b", "tenant=a or domain=b", False),
])
def test_what_was_ordered_is_known_again_however_it_is_typed(one: str, other: str, same: bool) -> None:
    """Spaces, quotes and case make no other expression, but for the case in a regular expression."""
    assert same_mail(one, other) is same_mail(other, one) is same


def test_a_pause_ends_by_itself() -> None:
    """From its time on it holds nothing."""
    found = book(order("pause", "domain=d.test", until_us=NOW_US + 1))
    assert found.ruling(queue_facts("d.test"), NOW_US).held is not None
    assert found.ruling(queue_facts("d.test"), NOW_US + 1).held is None


def test_what_depends_on_the_delivery_is_asked_of_each() -> None:
    """Of queues where it can matter; the others are out without a look."""
    found = book(order("pause", "domain=d.test and recipient=u2@*"))
    ruling = found.ruling(queue_facts("d.test"), NOW_US)
    assert (ruling.held, len(ruling.each)) == (None, 1)
    assert found.ruling(queue_facts("e.test"), NOW_US).each == ()
    assert found.holds_singly(queue_facts("d.test"), delivery(), NOW_US) is not None
    assert found.holds_singly(queue_facts("d.test"), delivery(recipients=[Recipient("u1@d.test")]), NOW_US) is None


def test_a_sweep_never_holds_a_queue() -> None:
    """Mail that comes later is not meant, so it is asked of each delivery."""
    ruling = book(order("delete", "domain=d.test")).ruling(queue_facts("d.test"), NOW_US)
    assert (ruling.held, len(ruling.each)) == (None, 1)


def test_an_unknown_provider_leaves_it_open() -> None:
    """Only as long as it is not known, and only if it decides."""
    found = book(order("pause", "provider=google and tenant=acme"))
    assert found.ruling(queue_facts("acme@d.test"), NOW_US).open
    assert not found.ruling(queue_facts("other@d.test"), NOW_US).open
    assert found.ruling(queue_facts("acme@d.test", "google"), NOW_US).held is not None
    assert found.ruling(queue_facts("acme@d.test", ""), NOW_US) == (None, None, (), False)


def test_the_last_reroute_wins() -> None:
    """As an operator who gives a second one means."""
    found = book(order("reroute", "queue=*", pool="one"), order("reroute", "tenant=acme", pool="two"))
    assert found.ruling(queue_facts("acme@d.test"), NOW_US).pool == "two"
    assert found.ruling(queue_facts("d.test"), NOW_US).pool == "one"


def test_a_reroute_by_what_a_delivery_has_gives_it_a_queue_beside_its_own() -> None:
    """Which goes by the order's pool while that is in force, then by its own again. The last one that matches wins,
    be it about the queue as a whole or not; what is rerouted stays so, whatever becomes of what made it match."""
    given = orders(order("reroute", "sender=a@*", pool="one"), order("reroute", "tenant=acme", pool="two"),
                   order("reroute", "attempts>0", pool="three"), order("reroute", "sender=z@*", pool="four"))
    found, one = Book(given), delivery()

    def goes(name: str, **fields: Any) -> tuple[str | None, str | None]:
        moves_by = found.detour(queue_facts(name), delivery(**fields), NOW_US)
        return found.ruling(queue_facts(name), NOW_US).pool, moves_by.pool if moves_by is not None else None

    assert goes("d.test") == (None, "three")
    assert goes("acme@d.test", attempts=0) == ("two", None)
    assert goes("acme@d.test") == ("two", "three")
    assert goes("d.test", attempts=0) == (None, "one")
    name = detour("c:acme@d.test/p^bulk", 3)
    assert (name, detour("d.test", 3), detour(name, 4)) == (
        "c:acme@d.test/p/3^bulk", "d.test//3", "c:acme@d.test/p/4^bulk")
    assert goes(name) == goes(name, attempts=0) == ("three", None)
    assert [meant.order.pool for meant in found.ruling(queue_facts("d.test"), NOW_US).each] == ["four", "three", "one"]
    facts = queue_facts(name)
    assert (facts.pool, facts.priority, facts.tenant, facts.detour) == ("p", "bulk", "acme", 3)
    for text in (f'queue="{name}"', 'queue="c:acme@d.test/p^bulk"', "pool=p"):
        assert Filter.parse(text).of_queue(facts)
    found = Book(given.end(given.orders[2], "ended", "root", NOW_US))
    assert goes(name) == ("two", None)
    assert goes("d.test//3") == (None, "one")
    assert pool_of(name) == "p"
    assert (pool_of("d.test//3"), domain_of("d.test//3"), one.queue) == ("", "d.test", "d.test")


@pytest.mark.parametrize(("wrong", "why"), [
    (order("pause", "tenat=x"), "did you mean tenant"),
    (order("reroute", "tenant=x"), "which pool"),
    (order("suspend"), "what"),
    (order("suspend", "campaign=c", target="mx.test"), "not both"),
    (order("suspend", "source=out* and tenant=x"), "`mta pause 'source=out\\* and tenant=x'` keeps mail"),
    (order("limit", target="mx.test"), "to what"),
])
def test_an_order_that_makes_no_sense_is_refused(wrong: Order, why: str) -> None:
    """With the reason, and nothing changes."""
    with pytest.raises(OrderError, match=why):
        Orders().give(wrong)


def test_orders_survive_being_written_down() -> None:
    """Every field; and what was changed, for the events."""
    given = orders(order("pause", 'sender="ü \\" x"', until_us=5, reason="é"), order("limit", target="a>b", rate=0.5),
                   order("delete", "queue=*", notify=True), order("retry", "queue=*", now=True),
                   order("reroute", "queue=*", pool="p"), order("limit", target="a", connections=0))
    given = given.end(given.orders[1], "ended", "alice", NOW_US + 5)
    given = given.end(given.orders[1], "done", "mta", NOW_US + 6, 7)
    given = given.lifted([Order(0, "suspend", "rule x", NOW_US, target="a>b")], "bob", NOW_US + 7)
    assert Orders.decode(given.encode()) == given
    assert [one.serial for one in given.changes] == list(range(1, 10))
    assert [one.unreadable for one in given.changes] == [0] * 7 + [7, 0]
    assert (given.changes[-1].order.by_rule, given.changes[-1].order.id) == ("x", "")


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"{}", b'{"version": 99}', b"\xff"])
def test_a_broken_file_is_said_to_be_one(broken: bytes) -> None:
    """Never taken for no orders: mail that was held would leave."""
    with pytest.raises(ValueError, match=r".+"):
        Orders.decode(broken)


def test_the_end_of_a_pause_releases_what_it_held_singly() -> None:
    """By a sweep; a pause of whole queues needs none."""
    given = orders(order("pause", "domain=d.test"), order("freeze", f"message={format_id(7 << 10)}"),
                   order("suspend", "campaign=c"), order("suspend", target="mx.test"), order("suspend", "sender=a@*"))
    for one in given.orders:
        given = given.end(one, "ended", "root", NOW_US)
    assert [(one.kind, one.filter) for one in given.orders] == [
        ("release", f"message={format_id(7 << 10)}"), ("release", "sender=a@*")]


def test_numbers_are_never_given_twice() -> None:
    """Also not after all have ended."""
    given = orders(order("pause", "queue=*"))
    given = given.end(given.orders[0], "ended", "root", NOW_US)
    given, one = given.give(order("pause", "queue=*"))
    assert one.number == 3


def test_facts_of_a_delivery() -> None:
    """Its last reply, its age, its attempts; the due time is what it would be without a hold."""
    facts = facts_of(delivery(), NOW_US)
    assert (facts.age_s, facts.attempts, facts.reply) == (3600.0, 1, "451 4.7.1 Greylisted")
    assert due_of(NOW_US + HELD_US) == due_of(NOW_US) == NOW_US
