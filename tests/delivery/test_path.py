"""A path opens connections by what waits, and stands still when its site fails."""

from __future__ import annotations

from typing import Any

from mta.config.schema import Shaping
from mta.delivery.lane import Lane
from mta.delivery.leases import Refusal
from mta.delivery.path import Path
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.scheduler import Queue

SECOND = 1_000_000


def path(connections: int = 5) -> Path:
    """A path with a lane of its own that leads to it alone."""
    system: Any = None
    one = Path("mx.d.test", system, Shaping(connections=connections))
    Lane("mx.d.test", "", "d.test").lead_to([one], [1])
    return one


def lane_of(one: Path) -> Lane:
    return next(iter(one.lanes))


def wants_connection(one: Path, now_s: float, forced: bool = False) -> bool:
    """Whether one would help, and may be opened."""
    return lane_of(one).wants_connection(forced) and one.may_open(now_s)


def waiting(count: int, name: str = "d.test") -> Queue:
    queue = Queue(0, name, name, "")
    for number in range(count):
        message = Message(number, "a@x.test", 0, None)
        queue.ready.append(Delivery(message, 0, name, name, [Recipient(f"u@{name}")], 0))
    return queue


def connect(one: Path, count: int) -> None:
    for _ in range(count):
        stand_in: Any = object()
        one.connections.add(stand_in)
        lane_of(one).connections.add(stand_in)


def test_the_first_delivery_opens_a_connection_and_a_backlog_opens_more() -> None:
    """Connections follow the number of waiting deliveries, up to the limit."""
    one = path(connections=3)
    assert not wants_connection(one, 0.0)
    lane_of(one).turns.add(waiting(10))

    opened = 0
    while wants_connection(one, 0.0):
        connect(one, 1)
        opened += 1

    assert opened == 3


def test_a_single_delivery_behind_a_busy_connection_opens_none_unless_forced() -> None:
    """A fast site is served by one connection; a delivery that has waited a while gets one more."""
    one = path()
    lane_of(one).turns.add(waiting(1))
    connect(one, 1)

    assert not wants_connection(one, 0.0)
    assert wants_connection(one, 0.0, forced=True)


def test_a_host_that_greets_late_gets_no_more_connections_than_deliveries_wait() -> None:
    """One message, and a greeting that takes half a minute: one connection is opened, not one more each second."""
    one = path()
    lane_of(one).turns.add(waiting(2))
    connect(one, 1)
    one.opening = 1
    assert wants_connection(one, 0.0, forced=True)
    connect(one, 1)
    one.opening = 2
    assert not wants_connection(one, 0.0, forced=True)
    one.opening = 1  # the other one is at work
    assert wants_connection(one, 0.0, forced=True)


def test_an_idle_connection_is_used_first() -> None:
    """None is opened while one rests."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 1)
    one.idle.append(next(iter(one.connections)))

    assert not wants_connection(one, 0.0)


def test_after_a_failure_one_probe_goes_first() -> None:
    """Until a transaction succeeds a failed site sees a single connection."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    assert one.refused("refused", 0.0, Refusal.ALONE)
    one.failed(60 * SECOND)
    assert (one.probing, one.suspended_until_us) == (True, 60 * SECOND)
    connect(one, 1)

    assert not wants_connection(one, 61.0)
    one.succeeded(61.0)
    assert wants_connection(one, 61.0)


def test_a_refused_connection_beside_working_ones_is_no_failure() -> None:
    """A site that serves others is not down: no suspension; how many it takes is a matter of the shared limit."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 2)
    one.opening = 1

    assert not one.refused("421 too many", 100.0, Refusal.BEYOND)
    assert wants_connection(one, 100.0)
    assert not one.probing


def test_a_site_that_takes_no_new_connection_is_asked_less_and_less() -> None:
    """It took as many before, so there is no number to hold to: the wait doubles, until it takes one."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 2)
    one.opening = 1
    now_s, waits = 100.0, []
    for _ in range(8):
        assert not one.refused("421 not now", now_s, Refusal.WITHIN)
        waits.append(one.hold_until_s - now_s)
        assert not wants_connection(one, one.hold_until_s - 0.1)
        now_s = one.hold_until_s
        assert wants_connection(one, now_s)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    one.took()
    one.refused("421 not now", now_s, Refusal.WITHIN)
    assert one.hold_until_s == now_s + 1


def test_what_another_worker_will_know_in_a_moment_is_waited_for_but_not_for_ever() -> None:
    """Two workers opened the first connections at the same time: the site may be busy or down."""
    one = path()
    connect(one, 1)
    one.opening = 1
    assert [one.refused("421", now_s, Refusal.UNCLEAR) for now_s in (0.0, 1.0, 3.0, 7.0)] == [False, False, False, True]


def test_of_a_burst_the_last_refusal_decides() -> None:
    """While others are still being opened nothing is known of the site; when none was taken, it is suspended."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 3)
    for opening in (3, 2):
        one.opening = opening
        assert not one.refused("connect: refused", 0.0, Refusal.ALONE)
        lane_of(one).connections.discard(one.connections.pop())
    one.opening = 1

    assert one.refused("connect: refused", 0.0, Refusal.ALONE)


def test_nothing_joins_a_burst_that_has_begun_to_fail() -> None:
    """With one more each second there would always be another one to wait for, and a dead site never be suspended."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 2)
    one.opening = 2
    one.refused("timeout", 0.0, Refusal.ALONE)
    lane_of(one).connections.discard(one.connections.pop())
    one.opening = 1

    assert not wants_connection(one, 500.0, forced=True)
    one.opening = 0  # that one was taken
    assert wants_connection(one, 500.0)


def test_a_session_that_breaks_beside_working_ones_holds_back_for_a_moment_only() -> None:
    """It is no refusal, so the wait does not grow."""
    one = path()
    lane_of(one).turns.add(waiting(10))
    connect(one, 2)
    one.succeeded(100.0)

    for now_s in (100.0, 100.1, 100.2):
        assert not one.broken("connection lost", now_s)
    assert wants_connection(one, 101.3)


def test_a_failure_long_after_the_last_success_suspends() -> None:
    """Success vouches for a site for a minute, not for ever: then a broken session is a sick host."""
    one = path()
    connect(one, 2)
    one.opening = 1
    one.succeeded(0.0)

    assert one.broken("timeout", 1000.0)
