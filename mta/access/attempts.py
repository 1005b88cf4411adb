"""Limits on failed logins, so that guessing passwords is slow: by address, and by user.

An address that fails waits for each answer, twice as long each time, and with too many failures is not asked any more.
A user whose password is being guessed from many addresses is closed to all addresses but those from which it has
logged in before: so nobody can shut a user out by failing in its name.

Pure: the time is given, and where the numbers are kept is somebody else's: all workers keep them together
(`mta.delivery.shared_numbers`). `Numbers` is for one process alone.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final, Protocol

LONGEST_DELAY_S: Final = 15.0
KEPT: Final = 20_000
KNOWN_S: Final = 30 * 86_400.0
"""So long a user is known at an address from which it has logged in."""
_FRESH_S: Final = 0.9 * KNOWN_S  # what is known for longer than this from now is not written again

ADDRESS: Final = "a"
USER: Final = "u"
KNOWN: Final = "k"


class Keeper(Protocol):
    """Numbers by kind and name, each until a time (monotonic). A bounded number of them, whoever makes up names."""

    def get(self, kind: str, name: str, now_s: float) -> tuple[int, float]:
        """The number, and until when it counts; 0 when there is none."""

    def add(self, kind: str, name: str, now_s: float, until_s: float, *, renew: bool = False) -> int:
        """Count one more, and return the number. One that was there goes on until its own time, if not `renew`."""


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 a /64, which is what one customer has."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


class Attempts:
    """The failed logins that there were."""

    def __init__(self, per_address: int, per_user: int, time_s: float, first_delay_s: float,
                 keeper: Keeper | None = None) -> None:
        self._keeper = keeper if keeper is not None else Numbers()
        self.configure(per_address, per_user, time_s, first_delay_s)

    def configure(self, per_address: int, per_user: int, time_s: float, first_delay_s: float) -> None:
        """Other limits, for what comes from now on."""
        self._per_address = per_address
        self._per_user = per_user
        self._time_s = time_s
        self._first_delay_s = first_delay_s

    def address_is_closed(self, address: str, now_s: float) -> bool:
        """Whether too many logins from this address have failed."""
        return self._keeper.get(ADDRESS, network_of(address), now_s)[0] >= self._per_address

    def user_is_closed(self, user: str, address: str, now_s: float) -> bool:
        """Whether too many logins of this user have failed, and it is not known at this address."""
        return self._keeper.get(USER, user, now_s)[0] >= self._per_user \
            and not self._keeper.get(KNOWN, _pair(user, address), now_s)[0]

    def failed(self, user: str, address: str, now_s: float) -> float:
        """Count a failure. How long its answer is to be put off, in seconds."""
        until_s = now_s + self._time_s
        self._keeper.add(USER, user, now_s, until_s)
        failures = self._keeper.add(ADDRESS, network_of(address), now_s, until_s)
        return min(self._first_delay_s * 2.0 ** min(failures - 1, 10), max(LONGEST_DELAY_S, self._first_delay_s))

    def succeeded(self, user: str, address: str, now_s: float) -> None:
        """The user is known at this address. What has failed there still counts: else who has one password could go on
        guessing others."""
        pair = _pair(user, address)
        if self._keeper.get(KNOWN, pair, now_s)[1] < now_s + _FRESH_S:
            self._keeper.add(KNOWN, pair, now_s, now_s + KNOWN_S, renew=True)


def _pair(user: str, address: str) -> str:
    return f"{network_of(address)}\0{user}"


class Numbers:
    """A keeper in the memory of one process; what has been quiet longest is forgotten first."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def get(self, kind: str, name: str, now_s: float) -> tuple[int, float]:
        count, until_s = self._counts.get((kind, name), (0, 0.0))
        return (count, until_s) if until_s > now_s else (0, 0.0)

    def add(self, kind: str, name: str, now_s: float, until_s: float, *, renew: bool = False) -> int:
        count, before_s = self.get(kind, name, now_s)
        self._counts[kind, name] = count + 1, until_s if renew or not count else before_s
        self._counts.move_to_end((kind, name))
        if len(self._counts) > KEPT:
            self._counts.popitem(last=False)
        return count + 1
