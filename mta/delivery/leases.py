"""How the leases of one limit are shared by the workers. Pure arithmetic on one record of the table of limits.

The rules, in the order of their weight:

* The leases held are never more than the limit.
* A lease that becomes free goes at once to a worker that waits: to the one that holds least, among equals to the one
  that waits longest. It is *granted*: counted as held from that moment, so nobody can come in between.
* While somebody waits, a lease is not taken past them.
* A worker gives way (`should_yield`) when all leases are held and another one that waits has none, or has at least
  two fewer: moving one then makes the shares more even. A lease that only rests goes to whoever can use it. Where more
  are held than the limit, as it is new or lower than before, what rests goes, and who has more than its part of the
  limit gives way: all do so at once, and are not left with less than that.

Together: workers that want many converge to equal shares, one that wants few gets them, and a limit smaller than the
number of workers goes round.

A receiver may have a limit of its own, below ours. When it refuses a connection while it serves others, of whichever
worker, all workers hold to the number of those (`refused`), so that they share it by the rules above instead of taking
it from each other. After a while one more is tried: if it is taken then one more again (`served`), if not the next
while is twice as long.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

import msgpack

FIRM_FIRST_S: Final = 1.0  # how long nothing is tried beyond what a receiver takes; doubles up to FIRM_CAP_S
FIRM_CAP_S: Final = 60.0
QUICK_S: Final = 5.0  # a refusal that takes longer comes of a dead host rather than of a busy one
SERVED_S: Final = 300.0  # a connection that a receiver took says so long that it serves those who hold leases


class Refusal(enum.Enum):
    """What it means that a receiver refuses a connection."""

    ALONE = "it serves no other connection of ours"
    UNCLEAR = "another worker is opening one, and will know in a moment"
    BEYOND = "it serves as many as it takes"
    WITHIN = "it took as many before, and takes no further one now"


@dataclass(slots=True)
class Share:
    """One worker's part in a limit."""

    held: int = 0
    want: int = 0  # how many more it could use
    since: float = 0.0  # when it began to want; monotonic seconds, one clock for all processes of a machine


@dataclass(slots=True)
class Leases:
    """One limit: who holds and who wants how many leases."""

    name: str
    limit: int
    shares: dict[int, Share] = field(default_factory=dict)  # by worker number
    now: float = 0.0  # when the record was read; monotonic seconds, as all times here
    taken: int = 0  # what the receiver takes, learned when it refused one more; 0: it has not
    firm_until: float = 0.0  # before, nothing is tried beyond that; then one
    firm_s: float = 0.0  # how long that is
    served_at: float = 0.0  # when the receiver last took a connection; 0: it has not, which on a machine that was just
    # started is not long ago

    @classmethod
    def decode(cls, record: bytes, now: float = 0.0) -> Leases:
        """From the form in the table."""
        name, limit, taken, firm_until, firm_s, served_at, *rest = msgpack.unpackb(record)
        shares = {worker: Share(held, want, since) for worker, held, want, since in rest}
        return cls(name, limit, shares, now, taken, firm_until, firm_s, served_at)

    def encode(self) -> bytes | None:
        """The form in the table: name, limit, what is known of the receiver, then [worker, held, want, since] of each;
        None when there is no share."""
        rest = [
            (worker, share.held, share.want, share.since)
            for worker, share in self.shares.items() if share.held or share.want
        ]
        if not rest:
            return None
        packed: bytes = msgpack.packb(
            [self.name, self.limit, self.taken, self.firm_until, self.firm_s, self.served_at, *rest])
        return packed

    @property
    def held(self) -> int:
        """Leases held by all workers."""
        return sum([share.held for share in self.shares.values()])

    @property
    def room(self) -> int:
        """How many may be held now."""
        if not self.taken:
            return self.limit
        return min(self.limit, self.taken + (self.now >= self.firm_until))

    def of(self, worker: int) -> Share:
        """The share of `worker`."""
        share = self.shares.get(worker)
        if share is None:
            share = self.shares[worker] = Share()
        return share

    def take(self, worker: int, now: float) -> tuple[bool, list[int]]:
        """One lease for `worker` if there is one that nobody waits for, else it waits from now on.

        Also returns the workers that were granted one on the occasion, which a raised limit makes possible.
        """
        mine = self.of(worker)
        since = mine.since if mine.want else now
        mine.want = 0
        granted = self.grant()
        if self.held < self.room:
            mine.held += 1
            return True, granted
        mine.want = 1
        mine.since = since
        return False, granted

    def give_back(self, worker: int, count: int = 1) -> None:
        """`worker` has no more use for `count` leases. Call `grant` afterwards."""
        share = self.of(worker)
        share.held = max(share.held - count, 0)

    def want(self, worker: int, count: int, now: float) -> None:
        """`worker` could use `count` more. Its place in the line is kept while it goes on wanting."""
        share = self.of(worker)
        if count and not share.want:
            share.since = now
        share.want = count

    def grant(self) -> list[int]:
        """Hand the free leases to those who wait; the workers that got one, once for each."""
        granted = []
        while waiting := [(share.held, share.since, worker) for worker, share in self.shares.items() if share.want]:
            if self.held >= self.room:
                break
            worker = min(waiting)[2]
            share = self.shares[worker]
            share.held += 1
            share.want -= 1
            granted.append(worker)
        return granted

    def should_yield(self, worker: int, resting: bool) -> bool:
        """Whether `worker` should give one lease back: there are more than the limit, or another worker needs it more.

        One that rests, connected but not in use, is due to anybody who waits, also to this worker's other paths.
        """
        mine = self.shares.get(worker)
        if mine is None or not mine.held or self.held < self.room:
            return False
        if self.held > self.limit:
            return resting or mine.held > self._part(worker)
        if resting:
            return any(share.want for share in self.shares.values())
        return any(
            share.want and (not share.held or share.held <= mine.held - 2)
            for other, share in self.shares.items() if other != worker
        )

    def _part(self, worker: int) -> int:
        """What is left for `worker`, which holds some, when those who hold any share the limit."""
        holders = sorted([worker for worker, share in self.shares.items() if share.held])
        each, more = divmod(self.limit, len(holders))
        return each + (holders.index(worker) < more)

    def served(self) -> None:
        """The receiver took a connection. Call `grant` afterwards."""
        self.served_at = self.now
        if self.taken and self.now >= self.firm_until and self.held > self.taken:
            self.taken = self.held if self.held < self.limit else 0
            self.firm_s = 0.0

    def refused(self, worker: int, begun: float, serves_us: bool) -> Refusal:
        """The receiver refused a connection that `worker` began to open at `begun`, and whose lease still counts.

        `serves_us`: it serves other connections of this worker.
        """
        elsewhere = self.held > self.of(worker).held
        serves_others = elsewhere and self.served_at > 0 and self.now - self.served_at <= SERVED_S
        if not serves_us and not serves_others:
            return Refusal.UNCLEAR if elsewhere and self.now - begun < QUICK_S else Refusal.ALONE
        others = max(self.held - 1, 1)
        if self.taken and begun < self.firm_until - self.firm_s:  # tried together with one that was refused before
            self.taken = min(self.taken, others)
            return Refusal.BEYOND
        within = 0 < self.held <= self.taken
        self.taken = others
        self.firm_s = min(max(self.firm_s * 2, FIRM_FIRST_S), FIRM_CAP_S)
        self.firm_until = self.now + self.firm_s
        return Refusal.WITHIN if within else Refusal.BEYOND
