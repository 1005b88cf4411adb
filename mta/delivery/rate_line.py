"""The line of paths of one worker that wait for the same rates, as of their provider or source.

Pure state. The worker has one place for them all (`Limits.reserve`). When that is due paths are *called*, the first in
line first: one that has a connection at rest asks at once, and one more is called to open its own meanwhile; of others
as many as could send while theirs are opened. A called path for which it is too early stands before those who were not;
one that does not come in time is not waited for, and may still come. So a message costs two questions however many
paths wait, and a place is not lost with the mail of the path that asked for it.

Dropped: a place for each path. It is lost, a message's time each, where the mail has left over another path (two
sources each with a rate of its own, a message now and then to each of 400 sites: a third of the rate); and if
connections take longer to open than a place is kept, all are lost.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence

from mta.delivery import calling
from mta.delivery.path import Path
from mta.delivery.rates import Bucket


class RateLine:
    """Paths that wait for the same buckets, with urgent mail or with other."""

    __slots__ = ("_ahead", "_back", "_late", "_number", "_waiting", "at_once", "at_s", "called", "key", "looks",
                 "patience_s", "spacing_s", "spacings", "urgent")

    def __init__(self, key: tuple[str, ...], buckets: Sequence[Bucket], urgent: bool) -> None:
        self.key = key  # names of the buckets
        self.urgent = urgent
        self.looks = False  # it is looked whether those who were called have come
        self.called: dict[Path, tuple[int, float]] = {}  # may ask; their numbers, and since when; in order
        self._late: dict[Path, int] = {}  # the same, not waited for any more
        self._back: list[tuple[int, Path]] = []  # were called too early, and stand before the others; by number
        self._waiting: dict[Path, int] = {}  # their numbers, in the order of coming
        self._number = 0
        self.take_rates(buckets)

    def take_rates(self, buckets: Sequence[Bucket]) -> None:
        """The rates are these now: what was said of a place does not hold any more."""
        self.spacings = [bucket.spacing for bucket in buckets]
        self.spacing_s = max(self.spacings)
        self.patience_s = calling.patience_for(self.spacing_s)
        self.at_once = calling.at_once(1 / self.spacing_s)
        # So many may stand called too early.
        self._ahead = max(min(math.ceil(calling.CALL_CAP_S / self.spacing_s), calling.CALLED_MOST), 1)
        self.at_s = 0.0  # when the place is due; in the past: those who are called may ask

    @property
    def has_any(self) -> bool:
        """Whether somebody stands in it whom it has to call, or has called."""
        return bool(self._waiting or self._back or self.called)

    def may_ask(self, path: Path, now_s: float) -> bool:
        """Whether something may go, and `path` was called or nobody else is before it."""
        if self.at_s > now_s:
            return False
        return path in self.called or path in self._late or not self.has_any or path is self._first()

    def _first(self) -> Path | None:
        return self._back[0][1] if self._back else next(iter(self._waiting), None)

    def hold(self, path: Path, now_s: float) -> float:
        """`path` waits: before those who were not called if it was, else where it is, or behind all. Returns when its
        turn comes, if nobody comes before and no other worker waits."""
        number = self.called.pop(path, (0, 0.0))[0] or self._late.pop(path, 0)
        if number:
            insort(self._back, (number, path))
        elif path not in self._waiting and not any(one is path for _, one in self._back):
            self._number = number = self._number + 1
            self._waiting[path] = number
        first = self._back[0][0] if self._back else next(iter(self._waiting.values()))
        return max(self.at_s, now_s) + max((number or self._waiting.get(path, first)) - first, 0) * self.spacing_s

    def leave(self, path: Path) -> None:
        """It does not wait any more, or one of its messages goes."""
        if not any(one.pop(path, None) for one in (self.called, self._late, self._waiting)) and self._back:
            self._back = [one for one in self._back if one[1] is not path]

    def call(self, now_s: float) -> Path | None:
        """The path whose turn it is, which may ask from now on; None when there is none."""
        if not self._back:
            return self.call_ahead(now_s)
        number, path = self._back.pop(0)
        self.called[path] = number, now_s
        return path

    def call_ahead(self, now_s: float) -> Path | None:
        """The first that was not called yet, unless enough stand before it: it may open a connection meanwhile."""
        if not self._waiting or len(self._back) >= self._ahead:
            return None
        path = next(iter(self._waiting))
        self.called[path] = self._waiting.pop(path), now_s
        return path

    def give_up(self, now_s: float) -> None:
        """Do not wait any longer for paths that were called and did not come."""
        for path, (number, since_s) in list(self.called.items()):
            if now_s - since_s < self.patience_s:
                break
            del self.called[path]
            self._late[path] = number
