"""What the engine makes of an answer of the shared rates."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from mta.delivery.pacing import Pacing
from mta.delivery.rates import Bucket


class Rates:
    """Gives these answers, one after the other."""

    def __init__(self, *answers: float) -> None:
        self.answers = list(answers)

    def reserve(self, buckets: object, urgent: bool = False) -> float:
        return self.answers.pop(0)


class Site(SimpleNamespace):
    """What is asked of a path."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


SHARED, PACE = Bucket("shared", 1, 6.0), Bucket("pace", 1, 6.0)


def test_a_place_whose_time_has_come_is_no_permission() -> None:
    """Between the answer and a look at the clock time goes on: nothing was taken, so it is asked again."""
    timers: list[float] = []
    engine: Any = SimpleNamespace(
        limits=Rates(99.9999, 0.0, 99.9999, 0.0), monotonic=lambda: 100.0,
        hub=SimpleNamespace(later=lambda seconds, *_: timers.append(seconds)))
    path: Any = Site(message_rates=(SHARED,), connection_rates=(1,), not_before_s=0.0, open_not_before_s=0.0,
                                blocked=False, overtakes=False)
    pacing = Pacing(engine)
    assert [pacing.may_send(path), pacing.may_send(path)] == [False, True]
    assert [pacing.may_open(path), pacing.may_open(path)] == [False, True]
    assert len(timers) == 2
    assert min(timers) >= 0


def test_a_probe_is_not_lost_to_a_rate() -> None:
    """A path that its receiver blocks shares a rate with busy ones: it waits for its place in that first, and is given
    the probe then, as probes are minutes apart. Where another worker has it the right is handed back; where the path
    is free meanwhile, at a rate of its own, that holds."""
    now, given, back = [100.0], list[bool](), list[object]()
    rates = Rates(103.0, 0.0, 0.0, 0.0, 115.0)
    limits = SimpleNamespace(reserve=rates.reserve, hand_back=lambda buckets, since=0: back.append(buckets))
    path: Any = Site(
        message_rates=(SHARED,), not_before_s=0.0, blocked=True, overtakes=False)

    def may_probe(path: Any) -> bool:
        granted = given.pop(0)
        if now[0] == 112.0:
            path.blocked, path.message_rates = False, (SHARED, PACE)
        return granted

    engine: Any = SimpleNamespace(
        limits=limits, monotonic=lambda: now[0], adapting=SimpleNamespace(may_probe=may_probe),
        hub=SimpleNamespace(later=lambda *_: None))
    pacing = Pacing(engine)
    assert not pacing.may_send(path)  # and no probe is asked for
    now[0], given[:] = 103.0, [True]
    assert pacing.may_send(path)
    assert not back
    now[0], given[:] = 110.0, [False]
    assert not pacing.may_send(path)
    assert back == [(SHARED,)]
    now[0], given[:] = 112.0, [True]
    assert not pacing.may_send(path)
    assert back == [(SHARED,)] * 2
    assert path.not_before_s == 115.0


def test_urgent_mail_asks_although_its_path_waits_with_other_mail() -> None:
    """Once: then it waits for its own time. After it the path waits for the time that it had before, for which there is
    a timer already, however often that happens. A path that its receiver blocks waits for its probe."""
    now, timers = [100.0], list[tuple[Any, ...]]()
    rates = Rates(700.0, 106.0, 0.0, 112.0, 0.0)
    engine: Any = SimpleNamespace(
        limits=rates, monotonic=lambda: now[0], hub=SimpleNamespace(later=lambda *call: timers.append(call)))
    path: Any = Site(message_rates=(SHARED,), not_before_s=0.0, blocked=False, overtakes=False)
    pacing = Pacing(engine)
    assert not pacing.may_send(path)
    for at_s in (106.0, 112.0):
        pacing.hasten(path)
        assert path.not_before_s == 0.0
        assert not pacing.may_send(path, urgent=True)
        pacing.hasten(path)
        assert path.not_before_s == at_s
        assert not pacing.may_send(path, urgent=True)
        now[0] = at_s
        assert pacing.may_send(path, urgent=True)
        assert not pacing.may_send(path)
    assert [until_s for *_, until_s in timers] == [700.0, 106.0, 112.0]
    assert not rates.answers
    path.blocked = True
    pacing.hasten(path)
    assert path.not_before_s == 700.0


def test_a_timer_that_comes_too_early_is_set_again() -> None:
    """A path that waits for its rate is called when it may send, however early a busy loop lets a timer fire: who asks
    before gets no answer, and nobody else would call."""
    now, timers, kicked = [100.0], list[tuple[Any, ...]](), list[object]()
    engine: Any = SimpleNamespace(
        monotonic=lambda: now[0], stopping=False, connecting=SimpleNamespace(kick_path=kicked.append),
        hub=SimpleNamespace(later=lambda *call: timers.append(call)))
    path: Any = SimpleNamespace(not_before_s=0.0)
    Pacing(engine).wait(path, 110.0)
    now[0] = 109.9
    seconds, call, *arguments = timers.pop()
    assert seconds > 10
    call(*arguments)
    assert not kicked
    now[0] = 110.001
    (seconds, call, *arguments), = timers
    assert 0.1 <= seconds < 0.2
    call(*arguments)
    assert kicked == [path]


def test_a_connection_that_comes_late_waits_for_its_rate_for_seconds_only() -> None:
    """DNS took long, and the right to open would come on top of others: it is taken again. With a rate of a few in an
    hour that would be many minutes, with leases and a place among those that are opened: the path is called instead."""
    now, timers, slept = [100.0], list[tuple[Any, ...]](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    engine: Any = SimpleNamespace(
        monotonic=lambda: now[0], stopping=False, limits=Rates(102.0, 0.0, 700.0),
        hub=SimpleNamespace(later=lambda *call: timers.append(call), sleep=sleep))
    path: Any = SimpleNamespace(connection_rates=(SimpleNamespace(fresh=0.5),), open_not_before_s=0.0)
    pacing = Pacing(engine)
    assert pacing.await_opening(path, 99.8)
    assert not slept
    assert pacing.await_opening(path, 99.0)
    assert [round(seconds) for seconds in slept] == [2]
    assert not pacing.await_opening(path, 99.0)
    assert len(slept) == len(timers) == 1
    assert path.open_not_before_s == 700.0


EARLY_PROGRAM = """
import gevent, time
from mta.delivery.hub import GeventHub
hub, fired = GeventHub(), []
gevent.sleep(0.01)
end = time.monotonic() + 0.2
while time.monotonic() < end:  # a turn of the loop that takes long
    pass
begun = time.monotonic()
hub.later(0.05, lambda: fired.append(time.monotonic() - begun))
gevent.sleep(0.2)
assert fired[0] >= 0.049, fired
"""


def test_the_hubs_timers_are_not_early_after_a_long_turn() -> None:
    """gevent reckons a timer from the beginning of the loop's turn; ours from when it is set."""
    done = subprocess.run([sys.executable, "-c", EARLY_PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
