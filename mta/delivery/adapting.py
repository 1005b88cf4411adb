"""Paths adapt to what their receivers bear: what was taken and refused goes in, a window and a pace come out.

`mta.delivery.adaptive` is the arithmetic, on one record per path in the table of limits, so that all workers learn
together and hold to the same. A path begins with a small window and is not recorded. It *learns*, which is to say that
its messages are counted and its record is written some times a second, from the moment when it wants more connections
than its window or has been refused something; most paths never do, and cost nothing.

A pace is one more rate of the path (`mta.delivery.pacing`). While the receiver refuses, each worker waits until a probe
is due, and the table gives it to one of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mta.delivery.adaptive import Adaptive, Window
from mta.delivery.outcome import End, Outcome
from mta.delivery.pace import SLOT_S
from mta.delivery.path import Path
from mta.delivery.pathstate import PathState
from mta.delivery.rates import Bucket

if TYPE_CHECKING:
    from mta.delivery.engine import Engine

WRITE_S: Final = 0.25  # how often what was taken is written down
FOR_LESS: Final = frozenset(("rate", "connections", "reputation"))  # classes of replies that ask for less
TOGETHER_S: Final = 8.0  # the longest wait that connections make which are begun, and refused, together
FOR_LESS_AT_ONCE: Final = frozenset(("rate", "connections"))  # those that say how, also at the greeting
BLOCKED: Final = -1.0  # as a rate in the shared state: nothing but probes


class Adapting:
    """The adaptation of one engine's paths."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counted: dict[Path, None] = {}  # those with something to write down

    def adopt(self, path: Path) -> None:
        """`path` is new, or its shaping is: have it keep to what is known of its receiver."""
        shaping = path.shaping
        options = shaping.adaptive
        path.allowed, path.paced, path.blocked, path.learns = shaping.connections, (), False, False
        if not options.enabled:
            return
        path.allowed = min(options.connections_first, shaping.connections)
        state = self._engine.limits.state(path.name)
        if state.adaptive:
            self._obey(path, state)

    # -- what happens ----------------------------------------------------------------------------------------------

    def taken(self, path: Path, begun_s: float, now_s: float) -> None:
        """The receiver took a message that was begun at `begun_s`. Hot path (bench S1, S2)."""
        path.taken += 1
        if path.taken == 1:
            path.taken_since_s = begun_s
        if path.learns:
            path.begun_s = begun_s
            if path.blocked:
                self._learn(path)
            elif path not in self._counted:
                if not self._counted:
                    self._engine.hub.later(WRITE_S, self._write)
                self._counted[path] = None
        elif now_s - path.taken_since_s > SLOT_S:  # older than what a pace is reckoned from
            path.taken, path.taken_since_s = 1, now_s

    def to(self, outcome: Outcome, path: Path, begun_s: float, now_s: float) -> bool:
        """A transaction, begun at `begun_s`, ended with refusals. Whether the path is paced because of them, so that
        nothing else need be done to it."""
        if any(result.end is End.DELIVERED for result in outcome.results):
            self.taken(path, begun_s, now_s)
        kinds = {result.ruling.kind for result in outcome.results if result.ruling is not None}
        if not path.shaping.adaptive.enabled or kinds.isdisjoint(FOR_LESS):
            return False
        is_rate = "rate" in kinds
        self._learn(path, refused_s=begun_s if is_rate else None, burdened=not is_rate)
        return is_rate

    def to_refusal(self, path: Path, kind: str, begun_s: float, *, alone: bool) -> bool:
        """The receiver, which serves no other connection of ours, refused one that was begun at `begun_s`, with a reply
        of that class. Whether the path gives it less because of that, so that nothing else need be done to it.

        `alone`: no other worker is opening one. Then each of those that come together counts, up to a wait of
        TOGETHER_S: a receiver that takes so many in a minute is asked less often for that. Else they are one reason to
        wait. Or a worker would wait for a minute while others are served, which may be between two connections."""
        if not path.shaping.adaptive.enabled or kind not in FOR_LESS_AT_ONCE:
            return False
        if kind == "rate":  # of messages, as a rule; the next connection is the probe
            self._learn(path, refused_s=begun_s)
        else:
            self._learn(path, burdened=True)
            now_s = self._engine.monotonic()
            waits = path.hold_until_s > now_s  # already: by this refusal, or one that came with it
            if not waits or (alone and path.hold_s < TOGETHER_S):
                path.hold(now_s)
        return True

    def changed(self, path: Path) -> None:
        """Another worker has learnt something about `path`."""
        if not path.shaping.adaptive.enabled:
            return
        state = self._engine.limits.state(path.name)
        if state.adaptive:
            if state.rate == BLOCKED and not path.blocked and path.taken:
                self._learn(path)  # what we have sent belongs into the account
            else:
                self._obey(path, state)

    def may_probe(self, path: Path) -> bool:
        """Whether a message may go over `path`, which is blocked, to see whether the receiver takes it."""
        now_s = self._engine.monotonic()
        granted = False

        def change(state: PathState) -> PathState:
            nonlocal granted
            found = self._decoded(state)
            # A record that was forgotten meanwhile, or cannot be read, holds nobody back.
            granted = found.pace.take_probe(now_s) or not found.pace.is_blocked
            return self._encoded(state, found, path) if granted else state

        state = self._engine.limits.update(path.name, change)
        self._obey(path, state, kick=False)
        return granted

    def why(self, path: Path) -> str:
        """What adaptation holds back, in words; empty when nothing."""
        state = self._engine.limits.state(path.name)
        if not state.adaptive or not path.shaping.adaptive.enabled:
            return ""
        return self._decoded(state).why(self._engine.monotonic())

    # -- the record ------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        counted, self._counted = self._counted, {}
        for path in counted:
            self._learn(path)

    def _learn(self, path: Path, refused_s: float | None = None, burdened: bool = False) -> None:
        now_s = self._engine.monotonic()
        messages, since_s = path.taken, path.taken_since_s
        path.taken = 0

        def change(state: PathState) -> PathState:
            found = self._decoded(state)
            if messages:
                found.taken(messages, now_s, path.begun_s, path.shaping.connections, since_s)
            if refused_s is not None:
                found.refused(now_s, refused_s)
            if burdened:
                found.burdened(now_s)
            return self._encoded(state, found, path)

        self._obey(path, self._engine.limits.update(path.name, change))

    def _decoded(self, state: PathState) -> Adaptive:
        """What is known, on our monotonic clock."""
        now_s = self._engine.monotonic()
        if state.adaptive:
            age_s = (self._engine.clock_us() - state.adaptive_us) / 1e6
            try:
                found = Adaptive.decode(state.adaptive, now_s - age_s)
                if not found.is_forgotten(now_s):
                    return found
            except ValueError:
                pass  # of another version: it is found out anew
        return Adaptive(seen_at=now_s)

    def _encoded(self, state: PathState, found: Adaptive, path: Path) -> PathState:
        shaping, pace = path.shaping, found.pace
        first = min(shaping.adaptive.connections_first, shaping.connections)
        if not found.window.cut_at and found.window.size < first:
            found.window = Window(float(first))
        rate = BLOCKED if pace.is_blocked else pace.rate
        least = shaping.adaptive.rate_least
        if least is not None and rate:
            rate = max(rate, least.per_second)
        return replace(
            state, connections=found.connections(shaping.connections, shaping.adaptive.connections_least),
            rate=rate, adaptive=found.encode(self._engine.monotonic()), adaptive_us=self._engine.clock_us())

    def _obey(self, path: Path, state: PathState, kick: bool = True) -> None:
        """Hold to what is known now."""
        engine = self._engine
        path.learns = True
        allowed, was_blocked = min(state.connections, path.shaping.connections), path.blocked
        path.blocked = state.rate == BLOCKED
        paced = (Bucket(f"{path.name} pace", state.rate, 1.0),) if state.rate > 0 else ()
        if path.blocked:
            self._engine.pacing.wait(path, self._decoded(state).pace.probe_at)
        elif was_blocked:
            path.not_before_s = 0.0
            if paced and kick:
                engine.limits.charge(paced)  # the probe is the first of the new pace
        if (allowed, paced, path.blocked) == (path.allowed, path.paced, was_blocked):
            return
        path.allowed, path.paced = allowed, paced
        path.unheld()
        engine.holds.apply(path)
        if kick:
            engine.connecting.kick_path(path)

