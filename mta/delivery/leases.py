"""How the leases of one limit are shared by the workers. Pure arithmetic on one record of the table of limits.

The rules, in the order of their weight:

* The leases held are never more than the limit.
* A lease that becomes free goes at once to a worker that waits: to the one that holds least, among equals to the one
  that waits longest. It is *granted*: counted as held from that moment, so nobody can come in between.
* While somebody waits, a lease is not taken past them.
* A worker gives way (`should_yield`) when all leases are held and another one that waits has none, or has at least
  two fewer: moving one then makes the shares more even. A lease that only rests goes to whoever can use it.

Together: workers that want many converge to equal shares, one that wants few gets them, and a limit smaller than the
number of workers goes round.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgpack


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

    @classmethod
    def decode(cls, record: bytes) -> Leases:
        """From the form in the table."""
        name, limit, *rest = msgpack.unpackb(record)
        return cls(name, limit, {worker: Share(held, want, since) for worker, held, want, since in rest})

    def encode(self) -> bytes | None:
        """The form in the table: [name, limit, [worker, held, want, since], ...]; None when there is no share."""
        rest = [
            (worker, share.held, share.want, share.since)
            for worker, share in self.shares.items() if share.held or share.want
        ]
        packed: bytes | None = msgpack.packb([self.name, self.limit, *rest]) if rest else None
        return packed

    @property
    def held(self) -> int:
        """Leases held by all workers."""
        return sum([share.held for share in self.shares.values()])

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
        if self.held < self.limit:
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
            if self.held >= self.limit:
                break
            worker = min(waiting)[2]
            share = self.shares[worker]
            share.held += 1
            share.want -= 1
            granted.append(worker)
        return granted

    def should_yield(self, worker: int, resting: bool) -> bool:
        """Whether `worker` should give one lease back, because another worker needs it more.

        One that rests, connected but not in use, is due to anybody who waits, also to this worker's other paths.
        """
        mine = self.shares.get(worker)
        if mine is None or not mine.held or self.held < self.limit:
            return False
        if resting:
            return any(share.want for share in self.shares.values())
        return any(
            share.want and (not share.held or share.held <= mine.held - 2)
            for other, share in self.shares.items() if other != worker
        )
