"""Which addresses a connection tries, and in what order.

Hosts go by preference, or as `shaping.mx` says; of each host the addresses in random order, both families in turn.
What connecting taught lately comes into it (`Reachability`): an address that could not be reached goes behind all
others, as does a host that a rule on replies sent mail away from; the family that failed for a host goes behind the
other one (as RFC 8305 prefers what works). Nothing is left out for it: when nothing better is left, it is tried.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mta.config.shaping import Shaping
from mta.delivery.ourselves import AF_INET, AF_INET6
from mta.delivery.routing import Addresses, Host, Route

FORGET_FIRST_S: Final = 60.0  # how long a failure counts; twice as long for each one in a row, up to FORGET_CAP_S
FORGET_CAP_S: Final = 1800.0
KEPT: Final = 10_000
AVOID_S: Final = 60.0  # how long a path prefers other hosts to one that sent a message elsewhere


@dataclass(slots=True)
class Target:
    """One address to try."""

    host: Host
    family: int
    address: str

    def __str__(self) -> str:
        shown = f"[{self.address}]" if self.family == AF_INET6 else self.address
        return f"{shown}:{self.host.port}"


class Reachability:
    """What one worker learnt by connecting. Bounded; the clock is given (monotonic seconds)."""

    def __init__(self, at_most: int = KEPT) -> None:
        self._at_most = at_most
        self._failures: OrderedDict[object, tuple[float, float]] = OrderedDict()  # until when, and for how long
        self._served: OrderedDict[str, str] = OrderedDict()  # by path, the host that served it last
        self._avoided: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # path, host: since, until

    def failed(self, target: Target, now_s: float) -> None:
        """`target` could not be reached."""
        for key in (target.address, (target.host.name, target.family)):
            until_s, wait_s = self._failures.get(key, (0.0, 0.0))
            in_a_row = now_s < until_s + wait_s
            wait_s = min(wait_s * 2, FORGET_CAP_S) if in_a_row else FORGET_FIRST_S
            self._failures[key] = (now_s + wait_s, wait_s)
            self._failures.move_to_end(key)
        while len(self._failures) > self._at_most:
            self._failures.popitem(last=False)

    def served(self, path: str, target: Target) -> None:
        """`target` gave a session on `path`."""
        if self._failures:
            self._failures.pop(target.address, None)
            self._failures.pop((target.host.name, target.family), None)
        if self._served.get(path) != target.host.name:
            self._served[path] = target.host.name
            self._served.move_to_end(path)
            if len(self._served) > self._at_most:
                self._served.popitem(last=False)

    def avoid(self, path: str, host: str, now_s: float) -> None:
        """A message is to go to another host than this one: for a while new connections of `path` prefer others."""
        since_s, until_s = self._avoided.pop((path, host), (now_s, 0.0))
        self._avoided[path, host] = since_s if now_s < until_s else now_s, now_s + AVOID_S
        if len(self._avoided) > self._at_most:
            self._avoided.popitem(last=False)

    def is_avoided(self, path: str, host: str, at_s: float) -> bool:
        """Whether a connection of `path` that was begun at this time goes to `host` only for want of another one."""
        since_s, until_s = self._avoided.get((path, host), (0.0, 0.0))
        return since_s <= at_s < until_s

    def is_failing(self, address: str, now_s: float) -> bool:
        """Whether `address` could not be reached lately."""
        found = self._failures.get(address)
        return found is not None and now_s < found[0]

    def family_is_failing(self, host: str, family: int, now_s: float) -> bool:
        """Whether addresses of this family of `host` could not be reached lately."""
        found = self._failures.get((host, family))
        return found is not None and now_s < found[0]

    def last_host(self, path: str) -> str:
        """The host that served `path` last; empty when that is not known."""
        return self._served.get(path, "")


def targets(path: str, route: Route, shaping: Shaping, addresses: Callable[[Host, Shaping], Addresses],
            serves: Callable[[int], bool], known: Reachability, now_s: float) -> Iterator[Target]:
    """What to try for `path`, the best first, at most `shaping.addresses`. Later hosts are looked up only if needed.

    `serves` tells whether the source of the path has an address of a family.
    """
    left = shaping.addresses
    failing: list[Target] = []
    avoided: list[Target] = []
    for host in in_order(route, shaping, known.last_host(path)):
        for family, address in _by_family(host, addresses(host, shaping).addresses, shaping, known, now_s):
            if not serves(family):
                continue
            target = Target(host, family, address)
            if known.is_failing(address, now_s):
                failing.append(target)
                continue
            if known.is_avoided(path, host.name, now_s):
                avoided.append(target)
                continue
            if left == 0:
                return
            left -= 1
            yield target
    yield from [*avoided, *failing][:left]


def in_order(route: Route, shaping: Shaping, last: str) -> list[Host]:
    """The hosts in the order to try; `last` served last."""
    if shaping.mx == "random" and not route.fixed:
        return random.sample(route.hosts, len(route.hosts))
    sticky = last if shaping.mx == "sticky" else ""
    return sorted(route.hosts, key=lambda host: (host.preference, host.name != sticky, random.random()))


def _by_family(host: Host, found: list[tuple[int, str]], shaping: Shaping, known: Reachability,
               now_s: float) -> list[tuple[int, str]]:
    """Addresses with the better family first; sorting keeps the order otherwise."""
    if shaping.families in ("ipv4-first", "ipv6-first"):
        first = AF_INET if shaping.families == "ipv4-first" else AF_INET6
        return sorted(found, key=lambda one: one[0] != first)
    failing = [family for family in (AF_INET, AF_INET6) if known.family_is_failing(host.name, family, now_s)]
    return sorted(found, key=lambda one: one[0] in failing) if len(failing) == 1 else found
