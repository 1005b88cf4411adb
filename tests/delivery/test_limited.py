"""The line of lanes in which the mail of a limited tenant waits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mta.config.schema import Tenant
from mta.delivery.calling import CALL_S, CALLED_MOST
from mta.delivery.lane import Lane
from mta.delivery.limited import Limited
from mta.delivery.rates import Bucket

BULK, TRANSACTIONAL = 2, 0


@dataclass(eq=False)
class Mail:
    """A queue as far as turns know it."""

    tenant: str = "t"
    priority: int = BULK


def lane(name: str, *mail: Mail) -> Lane:
    made = Lane(name, "", "d.test")
    for one in mail:
        made.turns.add(one)
    return made


def limited(**options: int) -> Limited:
    return Limited("t", Tenant(**options), (), None, None)


def test_lanes_are_called_in_the_order_in_which_they_came() -> None:
    """Who was called and came too late has its old place, so that a slow one is not passed by each time."""
    tenant = limited(concurrency=1)
    lanes = [lane(str(number), Mail()) for number in range(3)]
    for one in lanes:
        tenant.hold(one)
        assert not one.turns.count
    assert tenant.call(10, 0.0) is lanes[0]
    assert lanes[0].turns.count
    assert tenant.call(10, 0.0) is lanes[1]
    tenant.hold(lanes[1])
    tenant.hold(lanes[0])
    assert [tenant.call(10, 0.0) for _ in range(4)] == [*lanes, None]


def test_who_was_not_called_does_not_come_between() -> None:
    """A lane that asks while others wait stands behind them; alone it need not."""
    tenant = limited(concurrency=1)
    first, second, third = (lane(str(number), Mail()) for number in range(3))
    assert tenant.may_ask(first)
    tenant.hold(first)
    assert not tenant.may_ask(second)
    assert tenant.call(10, 0.0) is first
    assert tenant.may_ask(first)
    assert not tenant.may_ask(second)
    tenant.sent(first, BULK)
    assert tenant.may_ask(third)


def test_who_does_not_come_is_not_waited_for() -> None:
    """Its mail may be gone, or its site slow: then it may ask when it comes."""
    tenant = limited(concurrency=1)
    gone, slow, other = (lane(name, Mail()) for name in ("gone", "slow", "other"))
    for one in (gone, slow):
        tenant.hold(one)
        tenant.call(10, 0.0)
    gone.turns.discard(next(gone.turns.active()))
    tenant.give_up(CALL_S / 2)
    assert len(tenant.called) == 2
    tenant.give_up(CALL_S)
    assert (list(tenant.called), list(tenant.late)) == ([], [slow])
    assert tenant.may_ask(slow)
    assert tenant.may_ask(other)
    tenant.hold(other)
    tenant.hold(slow)
    assert tenant.call(10, 0.0) is slow


def test_a_lane_without_its_mail_is_not_called() -> None:
    """It is freed all the same."""
    tenant = limited(concurrency=1)
    mail = Mail()
    one = lane("one", mail)
    tenant.hold(one)
    one.turns.discard(mail)
    assert tenant.call(10, 0.0) is None
    assert (tenant.held, tenant.called) == ({}, {})
    one.turns.add(mail)
    assert one.turns.count == 1


@pytest.mark.parametrize(("ageing", "bulk"), [(10, 10), (2, 50), (0, 0)])
def test_priorities_with_ageing(ageing: int, bulk: int) -> None:
    """Transactional mail goes first, also such as came to a lane that waits; of so many messages one is bulk."""
    tenant = limited(concurrency=1)
    first, second = lane("first", Mail()), lane("second", Mail())
    tenant.hold(first)
    tenant.hold(second)
    urgent = Mail(priority=TRANSACTIONAL)
    second.turns.add(urgent)
    tenant.came(second, TRANSACTIONAL)
    sent = {first: 0, second: 0}
    for _ in range(100):
        called = tenant.call(ageing, 0.0)
        assert called is not None
        tenant.sent(called, BULK if called is first else TRANSACTIONAL)
        sent[called] += 1
        tenant.hold(called)
    assert sent[first] == bulk


def test_how_many_are_called_at_once() -> None:
    """As many as could send while a connection is opened: the rate's, no more than may be in flight."""
    assert limited(concurrency=3).at_once == 3
    assert limited(concurrency=1000).at_once == CALLED_MOST
    fast, slow = Bucket("f", 10, 1.0), Bucket("s", 1, 60.0)
    assert Limited("t", None, (fast,), None, None).at_once == 20
    assert Limited("t", Tenant(concurrency=4), (fast,), None, None).at_once == 4
    assert Limited("t", None, (fast, slow), None, None).at_once == 1
    assert Limited("t", None, (fast, slow), None, None).patience_s > 10 * CALL_S
