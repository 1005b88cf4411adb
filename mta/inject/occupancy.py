"""How many sessions there are, by client and in all, how many came lately, and what they hold.

A client is an address, of IPv6 a /64, which is what one customer has. Whoever is refused is told at once.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from mta.access.attempts import network_of
from mta.inject.balance import Balance
from mta.loop.burst import Burst
from mta.smtp.budget import Budget
from mta.smtp.coming import Coming
from mta.smtp.reply import Reply

TOO_MANY: Final = Reply(421, "4.3.2", ("Too many sessions, try again later",)).to_bytes()
TOO_MANY_OF_YOURS: Final = Reply(421, "4.7.0", ("Too many sessions from your address",)).to_bytes()
TOO_MANY_HERE: Final = Reply(421, "4.7.0", ("Too many sessions of this listener",)).to_bytes()
TOO_OFTEN: Final = Reply(421, "4.7.0", ("Too many connections from your address, try again later",)).to_bytes()
WHY: Final = {
    TOO_MANY: "too many sessions", TOO_MANY_OF_YOURS: "too many sessions from this address",
    TOO_MANY_HERE: "too many sessions of this listener", TOO_OFTEN: "too many connections from this address",
}
"""In our words, for who reads events and log."""

WINDOW_S: Final = 60.0
_CLIENTS_KEPT: Final = 20_000  # of whom connections are counted


class Occupancy:
    """Of one process and its hub. Several listeners may share one."""

    def __init__(self, coming: Coming | None = None, balance: Balance | None = None) -> None:
        self.total = 0
        self.most = math.inf  # what the descriptors of this process allow, whatever the configuration says
        self.content = Budget(math.inf)  # of the messages that they are receiving
        self.coming = coming or Coming()  # those messages
        self.burst = Burst()  # of their handshakes and long groups: how much of a turn of the loop all may take
        self._by_client: Counter[str] = Counter()
        self._came: Counter[str] = Counter()  # in this minute
        self._minute_ends_s = 0.0
        self._balance = balance
        if balance is not None:
            balance.tell(0)

    @property
    def is_ahead(self) -> bool:
        """Whether another worker has fewer sessions."""
        return self._balance is not None and self._balance.is_ahead

    def enter(self, address: str, limit: int, limit_per_client: float) -> bytes | None:
        """Count a session in. The refusal, if there are too many: then it is not counted."""
        if self.total >= limit or self.total >= self.most:
            return TOO_MANY
        client = network_of(address)
        if self._by_client.get(client, 0) >= limit_per_client:
            return TOO_MANY_OF_YOURS
        self._by_client[client] += 1
        self._count(1)
        return None

    def move(self, before: str, address: str, limit_per_client: float) -> bytes | None:
        """A session is of another client than was thought. The refusal, if that one has too many: then it stays counted
        as it was."""
        self._forget(before)
        client = network_of(address)
        if self._by_client.get(client, 0) >= limit_per_client:
            self._by_client[network_of(before)] += 1
            return TOO_MANY_OF_YOURS
        self._by_client[client] += 1
        return None

    def comes_too_often(self, address: str, limit: int, now_s: float) -> bool:
        """Count a connection; whether that is more than `limit` of this client in a minute. `now_s` is monotonic."""
        if now_s >= self._minute_ends_s or len(self._came) >= _CLIENTS_KEPT:
            self._came.clear()
            self._minute_ends_s = now_s + WINDOW_S
        client = network_of(address)
        self._came[client] += 1
        return self._came[client] > limit

    def leave(self, address: str) -> None:
        """Count a session out."""
        self._forget(address)
        self._count(-1)

    def _forget(self, address: str) -> None:
        client = network_of(address)
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def _count(self, difference: int) -> None:
        self.total += difference
        self.coming.clients = self.total
        if self._balance is not None:
            self._balance.tell(self.total)
