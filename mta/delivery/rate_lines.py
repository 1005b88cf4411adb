"""The lines of paths that wait for rates, in one engine: who is called when the worker's place is due.

`RateLine` has the order. One timer for each line; a path that waits for its turn costs nothing meanwhile, and its
connections are at rest, or closed when its turn is later than they would rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mta.delivery.calling import CALLED_MOST
from mta.delivery.path import Path
from mta.delivery.rate_line import RateLine
from mta.delivery.rates import Bucket

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

EARLY_S: Final = 0.001  # a timer may be so much early


class RateLines:
    """Of one engine. `Pacing` asks the table for those who may ask."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lines: dict[tuple[tuple[str, ...], bool], RateLine] = {}  # by names of buckets, and whether urgent

    def of(self, path: Path, urgent: bool) -> tuple[RateLine | None, bool]:
        """The line in which `path` asks, if there is one, and whether it asks as urgent: not if it was called among
        others, which is its turn for whatever mail."""
        if not self._lines:
            return None, urgent
        key = _names(path.message_rates)
        line = self._lines.get((key, urgent))
        if urgent:
            other = self._lines.get((key, False))
            if other is not None and path in other.called:
                line, urgent = other, False
        if line is not None and line.spacings != [bucket.spacing for bucket in path.message_rates]:
            line.take_rates(path.message_rates)
            self._engine.hub.spawn(self._call, line)
        return line, urgent

    def stands(self, line: RateLine, path: Path) -> bool:
        """Whether `path` has to wait for its turn."""
        if line.may_ask(path, self._engine.monotonic()):
            return False
        self._hold(path, line)
        return True

    def went(self, line: RateLine, path: Path) -> None:
        """A message of `path` goes: the next one asks for the next place."""
        line.leave(path)
        line.at_s = 0.0
        if line.has_any:
            self._engine.hub.spawn(self._call, line)
        else:
            self._end(line)

    def wait(self, path: Path, urgent: bool, at_s: float) -> None:
        """`path`, which might ask, was given a place."""
        key = _names(path.message_rates)
        line = self._lines.get((key, urgent))
        if line is None:
            line = self._lines[key, urgent] = RateLine(key, path.message_rates, urgent)
        line.at_s = at_s
        self._hold(path, line)
        self._await(line, at_s)

    def _hold(self, path: Path, line: RateLine) -> None:
        path.overtakes = line.urgent
        path.not_before_s = line.hold(path, self._engine.monotonic())

    def _await(self, line: RateLine, at_s: float) -> None:
        wait_s = max(at_s - self._engine.monotonic(), 0.0)
        self._engine.hub.later(wait_s + EARLY_S, self._due, line, at_s)

    def _due(self, line: RateLine, at_s: float) -> None:
        if line.at_s != at_s:
            return  # it was put off, and is awaited for that
        if at_s > self._engine.monotonic():
            self._await(line, at_s)  # who asks too early gets no answer, and nobody would call again
        else:
            self._call(line)

    def _call(self, line: RateLine) -> None:
        """Have those whose turn it is ask for what may be sent now. One that has a connection at rest will do so at
        once; of the others as many are called as could send while their connections are opened."""
        engine = self._engine
        now_s = engine.monotonic()
        if engine.stopping or line.at_s > now_s:
            return
        passed, ahead = 0, False
        while len(line.called) < line.at_once and (
                path := line.call_ahead(now_s) if ahead else line.call(now_s)) is not None:
            if not self._waits(path, line):
                line.leave(path)
                passed += 1
                if passed == CALLED_MOST:  # the event loop is not to be held up
                    engine.hub.spawn(self._call, line)
                    break
                continue
            path.not_before_s = min(path.not_before_s, now_s)
            done = ahead
            lane = next((lane for lane in path.lanes if lane.turns.count), None)
            if path.idle and lane is not None:  # not one of another path of the lane, which was not called
                ahead = True
                engine.connecting.lend(path.idle[-1], lane)
                engine.connecting.serve_claims(lane, path)
            else:
                engine.connecting.kick_path(path)
            if done:
                break
        if line.called and not line.looks:
            line.looks = True
            engine.hub.later(line.patience_s, self._look, line)
        if not line.has_any:
            self._end(line)

    def _waits(self, path: Path, line: RateLine) -> bool:
        """Whether a path that stands in line still has a use for it."""
        if _names(path.message_rates) != line.key or path.suspended_until_us > self._engine.clock_us():
            return False
        if line.urgent:
            return any(not lane.turns.best for lane in path.lanes) or bool(
                path.claims and not path.claims[0][0].priority)
        return path.has_work

    def _look(self, line: RateLine) -> None:
        """Some may have been called and not have come: their sites stand still, or are slow. Others go on."""
        line.looks = False
        line.give_up(self._engine.monotonic())
        self._call(line)

    def _end(self, line: RateLine) -> None:
        if self._lines.get((line.key, line.urgent)) is line:
            del self._lines[line.key, line.urgent]


def _names(rates: Sequence[Bucket]) -> tuple[str, ...]:
    return tuple([bucket.name for bucket in rates])
