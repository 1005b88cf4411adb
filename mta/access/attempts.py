"""Counts failed logins, so that guessing passwords is slow: by address, and by user.

An address that fails waits for each answer, twice as long each time, and with too many failures is not asked any more.
A user whose password is being guessed from many addresses is closed to all addresses but those from which it has
logged in before: so nobody can shut a user out by failing in its name.

Pure: the time is given. Memory is bounded; what has been quiet longest is forgotten first. A worker counts for itself.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

LONGEST_DELAY_S: Final = 15.0
KEPT: Final = 20_000  # addresses, users, and pairs of both

_K = TypeVar("_K")


@dataclass(slots=True)
class _Count:
    failures: int
    until_s: float


class _Failures(Generic[_K]):
    """Failures by key, each key's for a time after its first one."""

    def __init__(self) -> None:
        self._counts: OrderedDict[_K, _Count] = OrderedDict()

    def of(self, key: _K, now_s: float) -> int:
        count = self._counts.get(key)
        if count is None:
            return 0
        if now_s >= count.until_s:
            del self._counts[key]
            return 0
        return count.failures

    def add(self, key: _K, now_s: float, time_s: float) -> int:
        failures = self.of(key, now_s) + 1
        if failures == 1:
            self._counts[key] = _Count(1, now_s + time_s)
        else:
            self._counts[key].failures = failures
        self._counts.move_to_end(key)
        if len(self._counts) > KEPT:
            self._counts.popitem(last=False)
        return failures


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 a /64, which is what one customer has."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


class Attempts:
    """The failed logins of one process."""

    def __init__(self, per_address: int, per_user: int, time_s: float, first_delay_s: float) -> None:
        self._addresses: _Failures[str] = _Failures()
        self._users: _Failures[str] = _Failures()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.configure(per_address, per_user, time_s, first_delay_s)

    def configure(self, per_address: int, per_user: int, time_s: float, first_delay_s: float) -> None:
        """Other limits, for what comes from now on."""
        self._per_address = per_address
        self._per_user = per_user
        self._time_s = time_s
        self._first_delay_s = first_delay_s

    def address_is_closed(self, address: str, now_s: float) -> bool:
        """Whether too many logins from this address have failed."""
        return self._addresses.of(network_of(address), now_s) >= self._per_address

    def user_is_closed(self, user: str, address: str, now_s: float) -> bool:
        """Whether too many logins of this user have failed, and it is not known at this address."""
        return self._users.of(user, now_s) >= self._per_user and (user, network_of(address)) not in self._known

    def failed(self, user: str, address: str, now_s: float) -> float:
        """Count a failure. How long its answer is to be put off, in seconds."""
        self._users.add(user, now_s, self._time_s)
        failures = self._addresses.add(network_of(address), now_s, self._time_s)
        return min(self._first_delay_s * 2.0 ** min(failures - 1, 10), max(LONGEST_DELAY_S, self._first_delay_s))

    def succeeded(self, user: str, address: str) -> None:
        """The user is known at this address. What has failed there still counts: else who has one password could go on
        guessing others."""
        key = (user, network_of(address))
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
