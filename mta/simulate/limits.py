"""The table of limits of a simulation: the arithmetic of `mta.delivery.limits`, for one worker, in memory.

Leases, rates, counters and states are reckoned by the same code (`leases`, `rates`, `counters`, `pathstate`). With one
worker a limit over all workers is a limit over this one: how workers share it is not what is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from mta.delivery.counters import DAY_S, LEVEL, Counter
from mta.delivery.leases import FIRM_FIRST_S, Leases, Refusal
from mta.delivery.pathstate import PathState
from mta.delivery.rates import FORGIVEN_S, Bucket, Level, Place, take
from mta.delivery.tally import Tally
from mta.simulate.kernel import VirtualHub

ME: Final = 0
FOREVER: Final = float("inf")

T = TypeVar("T")


class _Hand:
    """The places in line of one set of buckets."""

    __slots__ = ("asked", "buckets", "last", "place", "spacings", "urgent", "used")

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = buckets
        self.spacings = [bucket.spacing for bucket in buckets]
        self.place, self.urgent = Place(), Place(urgent=True)
        self.last: Place | None = None  # the one that was given last; None: some were taken
        self.used: list[float] = []
        self.asked = 0.0  # when some were taken, or a place was given, last

    def is_for(self, buckets: Sequence[Bucket]) -> bool:
        """Whether these are the same, with the same rates."""
        return self.buckets is buckets or self.spacings == [bucket.spacing for bucket in buckets]


class SimulatedLimits:
    """As `Limits`, for the engine of a simulation. `nudged` is called with names of limits that have leases for us."""

    trouble = ""
    has_room = True

    def __init__(self, hub: VirtualHub) -> None:
        self._hub = hub
        self.nudged: Callable[[list[str]], None] = _nobody
        self._leases: dict[str, Leases] = {}
        self._waiting: dict[str, tuple[int, float]] = {}  # limit, and until when to wait for the nudge
        self._granted: dict[str, int] = {}
        self._nudges: dict[str, None] = {}
        self._levels: dict[str, tuple[Level, Bucket]] = {}
        self._hands: dict[tuple[str, ...], _Hand] = {}
        self._counters: dict[str, Counter] = {}
        self._states: dict[str, PathState] = {}
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._outcomes: dict[str, int] = {}

    # -- leases --------------------------------------------------------------------------------------------------

    def _load(self, name: str, limit: int) -> Leases:
        state = self._leases.get(name)
        if state is None:
            state = self._leases[name] = Leases(name, limit)
        state.now = self._hub.now
        return state

    def _save(self, state: Leases) -> None:
        share = state.of(ME)
        if not share.held and not share.want:  # as in the table: what nobody holds or wants is forgotten
            self._leases.pop(state.name, None)

    def acquire(self, leases: Sequence[tuple[str, int | None]]) -> str | None:
        """As `Limits.acquire`."""
        wanted = sorted([(limit, name) for name, limit in leases if limit is not None])
        for limit, name in wanted:
            wait = self._waiting.get(name)
            if wait is not None and wait[0] == limit and self._hub.now < wait[1]:
                return name
        taken: list[Leases] = []
        for limit, name in wanted:
            if name in self._granted:
                continue
            state = self._load(name, limit)
            state.limit = limit
            took, granted = state.take(ME, state.now)
            self._grant(state, granted)
            if not took:
                until = max(state.firm_until, state.now + FIRM_FIRST_S) if state.taken else FOREVER
                self._waiting[name] = (limit, until)
                self._nudge(name)  # one of our own connections may rest
                for other in taken:
                    other.give_back(ME)
                    self._save(other)
                return name
            taken.append(state)
        for _, name in wanted:
            self._waiting.pop(name, None)
            granted_here = self._granted.pop(name, 0)
            if granted_here > 1:
                self._granted[name] = granted_here - 1
        return None

    def release(self, names: Sequence[str]) -> None:
        """As `Limits.release`."""
        for name in names:
            state = self._load(name, 0)
            state.give_back(ME)
            self._grant(state, state.grant())
            self._save(state)

    def served(self, name: str) -> None:
        """As `Limits.served`."""
        state = self._load(name, 0)
        state.served()
        self._grant(state, state.grant())
        self._save(state)

    def refused(self, name: str, begun: float, serves_us: bool) -> Refusal:
        """As `Limits.refused`."""
        state = self._load(name, 0)
        refusal = state.refused(ME, begun, serves_us)
        self._save(state)
        return refusal

    def learned(self, name: str) -> int:
        """As `Limits.learned`."""
        state = self._leases.get(name)
        return state.taken if state is not None else 0

    def holders(self, name: str) -> dict[int, int]:
        """As `Limits.holders`."""
        state = self._leases.get(name)
        held = state.of(ME).held if state is not None else 0
        return {ME: held} if held else {}

    def waits(self, name: str) -> bool:
        """As `Limits.waits`."""
        return name in self._waiting

    def want(self, name: str, count: int) -> None:
        """As `Limits.want`."""
        if name not in self._waiting and name not in self._granted:
            return
        state = self._load(name, 0)
        if not count:
            self._waiting.pop(name, None)
            state.give_back(ME, self._granted.pop(name, 0))
        state.want(ME, count, self._hub.now)
        self._grant(state, state.grant())
        self._save(state)

    def should_yield(self, name: str, limit: int, resting: bool = False) -> bool:
        """As `Limits.should_yield`."""
        return self.gives_way(((name, limit),), resting) is not None

    def gives_way(self, leases: Sequence[tuple[str, int | None]], resting: bool = False) -> str | None:
        """As `Limits.gives_way`: there are no other workers, but a connection at rest is in the way of our own."""
        for name, limit in leases:
            if limit is not None and name in self._leases and self._load(name, limit).should_yield(ME, resting):
                return name
        return None

    def _grant(self, state: Leases, granted: list[int]) -> None:
        if granted:
            self._waiting.pop(state.name, None)
            self._granted[state.name] = self._granted.get(state.name, 0) + len(granted)
            self._nudge(state.name)

    def _nudge(self, name: str) -> None:
        if not self._nudges:
            self._hub.spawn(self._tell)
        self._nudges[name] = None

    def _tell(self) -> None:
        names, self._nudges = list(self._nudges), {}
        self.nudged(names)

    # -- rates and counters --------------------------------------------------------------------------------------

    def reserve(self, buckets: Sequence[Bucket], count: int = 1, urgent: bool = False) -> float:
        """As `Limits.reserve`."""
        now = self._hub.now
        if not buckets:
            return 0.0
        key = tuple([bucket.name for bucket in buckets])
        hand = self._hands.get(key)
        levels = [self._level(bucket, now) for bucket in buckets]
        if hand is None or not hand.is_for(buckets):
            hand = self._hands[key] = _moved(hand, buckets, now)
        place = hand.urgent if urgent else hand.place
        if place.at > now:
            return place.at
        if place.turns and now - place.at > max(FORGIVEN_S, *[bucket.spacing for bucket in buckets]):
            place.turns.clear()
        hand.asked = now
        if take(buckets, levels, count, place, now) is None:
            hand.last, hand.used = None, [level.used for level in levels]
            return 0.0
        hand.last = place
        return place.at

    def charge(self, buckets: Sequence[Bucket]) -> None:
        """As `Limits.charge`."""
        for bucket in buckets:
            level = self._level(bucket, self._hub.now)
            level.used = max(level.used, self._hub.now + bucket.spacing)

    def hand_back(self, buckets: Sequence[Bucket], count: int = 1, since: float = FOREVER) -> None:
        """As `Limits.hand_back`."""
        key = tuple([bucket.name for bucket in buckets])
        hand = self._hands.get(key)
        if hand is None or hand.asked > since:
            return
        del self._hands[key]
        if not hand.is_for(buckets):
            return
        if hand.place.turns and hand.last is not hand.place:
            self._hands[key] = _Hand(buckets)
            self._hands[key].place = hand.place
        for number, bucket in enumerate(buckets):
            level = self._level(bucket, self._hub.now)
            if hand.last is not None:
                hand.last.leave(bucket, level)
            elif hand.used and level.used == hand.used[number]:
                level.used -= count * bucket.spacing

    def _level(self, bucket: Bucket, now: float) -> Level:
        known = self._levels.get(bucket.name)
        if known is None:
            level = Level()
        elif known[1].spacing == bucket.spacing:
            return known[0]
        else:
            level = Level.decode(known[0].encode(known[1]), bucket, now)
        self._levels[bucket.name] = (level, bucket)
        return level

    def count(self, name: str, number: int, limit: int | None, period_s: int = DAY_S) -> bool:
        """As `Limits.count`."""
        counter = self._counters.setdefault(name, Counter(name, period_s))
        counter.period_s = period_s
        counter.begin(self._hub.clock_us())
        return counter.add(ME, number, limit)

    def counted(self, name: str) -> int:
        """As `Limits.counted`."""
        counter = self._counters.get(name) or Counter(name, LEVEL)
        return 0 if counter.is_over(self._hub.clock_us()) else counter.total

    def stock(self, name: str, number: int | None) -> None:
        """Nobody asks for it: see `SimulatedStore.count_of_tenants`."""

    def adopt(self, name: str, limit: int, count: int) -> bool:
        """As `Limits.adopt`."""
        state = self._load(name, limit)
        state.limit = limit
        state.of(ME).held += count
        return True

    # -- states --------------------------------------------------------------------------------------------------

    def state(self, name: str) -> PathState:
        """As `Limits.state`."""
        return self._states.get(name) or _UNKNOWN

    def update(self, name: str, change: Callable[[PathState], PathState]) -> PathState:
        """As `Limits.update`."""
        before = self.state(name)
        after = change(before)
        if after != before:
            after = self._states[name] = replace(after, version=before.version + 1)
        return after

    def changed(self) -> list[str]:
        """Nobody else changes anything."""
        return []

    def forget(self, name: str | None = None) -> None:
        """There are no copies."""

    def states(self) -> Iterator[tuple[str, PathState]]:
        """As `Limits.states`."""
        yield from self._states.items()


    # -- tallies of rules ----------------------------------------------------------------------------------------

    def tally(self, rule: str, key: str, change: Callable[[Tally, int], T], path: str = "", more: int = 0) -> T:
        """As `Limits.tally`."""
        total = self._outcomes[path] = self._outcomes.get(path, 0) + more
        return change(self._tallies.setdefault((rule, key), Tally(rule, key)), total)

    def ask(self, path: str) -> bool:
        """There are no others."""
        return False

    def asked(self) -> list[str]:
        """Nobody asks."""
        return []


def _moved(old: _Hand | None, buckets: Sequence[Bucket], now: float) -> _Hand:
    """A place that was had at other rates is moved as the line is; see `SharedRates`."""
    hand = _Hand(buckets)
    if old is not None:
        hand.place, hand.urgent, hand.last, hand.asked = old.place, old.urgent, old.last, old.asked
        for place in (old.place, old.urgent):
            if place.turns and place.at > now:
                place.move(now + (place.at - now) * min([
                    new / before for new, before, bucket in zip(hand.spacings, old.spacings, buckets, strict=True)
                    if bucket.name in place.turns]))
    return hand


_UNKNOWN: Final = PathState()


def _nobody(names: list[str]) -> None:
    """The default of `nudged`."""
