"""A path: everything that shares the connections from one source to one site.

Pure state, no I/O and no clock of its own: the engine tells it what happened and asks it what may be done. A path
decides whether one more connection may be opened (`may_open`), and when to stand still (`refused`, `broken`,
`suspend`). Whose mail goes over it is the matter of the lanes that lead to it (`mta.delivery.lane`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from mta.config.schema import Shaping
from mta.delivery.leases import Refusal
from mta.queue.records import Delivery
from mta.queue.scheduler import Queue

if TYPE_CHECKING:
    from mta.delivery.connection import Connection
    from mta.delivery.lane import Lane
    from mta.delivery.rates import Bucket
    from mta.delivery.routing import Route
    from mta.delivery.sources import Source

HOLD_FIRST_S = 1.0  # wait before a new connection after one that failed beside others; doubles up to HOLD_CAP_S
HOLD_CAP_S = 60.0
UNCLEAR_CAP_S = 4.0  # what is not clear after such a wait never will be
GOOD_FOR_S = 60.0  # a completed transaction vouches for the site this long


class Path:
    """One (source, site), or the connections of its own that a domain with an entry in `shaping.domains` has."""

    __slots__ = ("allowed", "begun_s", "beside", "blocked", "claims", "connection_rates", "connections",
                 "contended", "domain", "doubted", "failures", "good_until_s", "hold_s", "hold_until_s", "idle",
                 "is_held", "lanes", "learns", "lease", "leases", "message_rates", "most", "name", "not_before_s",
                 "open_not_before_s", "opening", "outcomes", "overtakes", "own_rates", "paced", "prompt",
                 "protect_until_s", "provider", "reason", "route", "shaping", "since_us", "source",
                 "suspended_by", "suspended_until_us", "taken", "taken_since_s", "tell_s", "totals", "waiting_for")

    def __init__(self, name: str, source: Source, shaping: Shaping) -> None:
        self.name = name
        self.source = source
        self.shaping = shaping
        self.route: Route | None = None
        self.lanes: dict[Lane, None] = {}  # those that lead to it; with several, the next one in turn first
        # In flight for it: they left from this source before. Few, and mostly none, for which a deque takes 760 octets.
        self.claims: list[tuple[Queue, Delivery]] = []
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self.opening = 0  # of the connections, those without an established session yet
        self.lease = name  # name of its limit in the table that all workers share
        self.leases: list[tuple[str, int]] = [(name, shaping.connections)]  # what each connection needs one of
        self.most = shaping.connections  # connections at once, over all workers; less while a hold says so
        self.totals: dict[str, int] = {}  # the limits over more than it, by name
        self.provider = ""  # of its site
        self.domain = ""  # the only one whose mail goes over it; empty when it is for all of its site
        self.beside = ""  # name of the path that the domain's mail would take without an operator's limit on it
        # What adaptation found (`mta.delivery.adapting`), and what it goes by.
        self.allowed = shaping.connections  # connections at once
        self.paced: Sequence[Bucket] = ()  # one more rate
        self.blocked = False  # the receiver refuses for its rate: nothing but probes
        self.learns = False  # what is taken is written down
        self.taken = 0  # messages since `taken_since_s`, the last of them begun at `begun_s`
        self.taken_since_s = self.begun_s = 0.0
        self.is_held = False  # by a suspension or a lower limit of `mta.delivery.holds`
        self.own_rates: Sequence[Bucket] = ()  # of messages, by the configuration
        self.message_rates: Sequence[Bucket] = ()  # a message takes one of each; those of holds included
        self.connection_rates: Sequence[Bucket] = ()  # and a connection
        self.not_before_s = 0.0  # no message goes before this, for the rates; monotonic
        self.overtakes = False  # that is a place for urgent mail
        self.open_not_before_s = 0.0  # and no connection is opened
        self.prompt = True  # its messages are answered soon: the next one may be on the connection before
        self.contended = False  # another worker wants connections of this limit
        self.doubted = False  # of the connections that are being opened together, one has failed and none succeeded
        self.failures = 0  # in a row, of the site as such
        self.outcomes = 0  # transactions that ended, for shares of them
        self.suspended_until_us = 0
        self.suspended_by = ""  # who said so: "site", "source", ...
        self.since_us = 0  # of a site: since its first failure in a row
        self.hold_until_s = 0.0  # before, no new connection; monotonic
        self.hold_s = 0.0  # how long that was
        self.good_until_s = 0.0
        self.reason = ""  # why it last stood still: what the peer or the network said
        self.protect_until_s = 0.0  # until then connections are opened as mail that requires TLS wants them; monotonic
        self.tell_s = 0.0  # when the other workers are to be told again that the site takes connections; monotonic
        self.waiting_for = ""  # the limit that keeps it from one more connection

    def __repr__(self) -> str:
        return (f"<Path {self.name}: {len(self.connections)} connections ({len(self.idle)} idle, {self.opening} "
                f"opening), {len(self.lanes)} lanes>")

    @property
    def probing(self) -> bool:
        """After failures one connection goes first; the others wait for what it finds."""
        return self.failures > 0

    @property
    def has_work(self) -> bool:
        """Whether something waits that may go over it."""
        if self.claims:
            return True
        return any(lane.turns.count for lane in self.lanes)

    def may_open(self, now_s: float) -> bool:
        """Whether one more connection is not forbidden by this path's own state. Suspension is asked for apart."""
        have = len(self.connections)
        if have and (have >= self.most or self.failures):
            return False  # first, as a busy lane asks for every message
        if self.idle or now_s < self.hold_until_s or now_s < self.not_before_s or now_s < self.open_not_before_s:
            return False
        if self.doubted and self.opening:
            return False  # or there would always be another one to wait for, and the site never be given a rest
        if self.blocked and have:
            return False  # one is enough to ask
        if self.message_rates:  # as many as would have something to send by the time they are open
            return self.opening < max(min(one.count / one.period_s for one in self.message_rates), 1)
        return True

    def unheld(self) -> None:
        """The limits that there are without any hold."""
        self.limit_to(self.allowed)
        self.message_rates = (*self.own_rates, *self.paced)

    def limit_to(self, most: int, totals: Mapping[str, int] = MappingProxyType({})) -> None:
        """So many connections at once from now on; and no more than `totals` over more than the path."""
        self.most = most
        lowest = {name: min(limit, totals.get(name, limit)) for name, limit in self.totals.items()}
        self.leases = [(self.lease, most), *{**totals, **lowest}.items()]

    def succeeded(self, now_s: float) -> None:
        """A transaction was completed: the site works."""
        self.good_until_s = now_s + GOOD_FOR_S
        self.outcomes += 1
        self.failures = 0
        self.doubted = False

    @property
    def established(self) -> int:
        """How many of the connections the site has taken."""
        return len(self.connections) - self.opening

    def refused(self, reason: str, now_s: float, refusal: Refusal) -> bool:
        """The site refused a connection. Whether the path has to stand still.

        Not while it serves others, here or in other workers: then it wants no more of them, which is a matter of the
        limit, or no new one now; repeated, for a longer time. While others are being opened nothing is known; for those
        of other workers the wait is short.
        """
        self.reason = reason
        if refusal in (Refusal.ALONE, Refusal.UNCLEAR) and self.opening > 1:
            self.doubted = True
            return False
        self.doubted = False
        if refusal is Refusal.ALONE:
            return True
        if refusal is not Refusal.BEYOND:
            self.hold(now_s)
        return refusal is Refusal.UNCLEAR and self.hold_s > UNCLEAR_CAP_S

    def hold(self, now_s: float) -> None:
        """No new connection for a while, each time for longer until one is taken."""
        self.hold_s = min(max(self.hold_s * 2, HOLD_FIRST_S), HOLD_CAP_S)
        self.hold_until_s = now_s + self.hold_s

    def broken(self, reason: str, now_s: float) -> bool:
        """The site ended a session before it served. Whether the path has to stand still.

        While it serves others this may be about what it was told: new ones wait for a moment.
        """
        self.reason = reason
        if self.established and now_s < self.good_until_s:
            self.hold_until_s = max(self.hold_until_s, now_s + HOLD_FIRST_S)
            return False
        return True

    def took(self) -> None:
        """The site took a connection."""
        self.hold_s = 0.0

    def failed(self, until_us: int, failures: int = 1, since_us: int = 0) -> None:
        """The site is at fault, so many times in a row by now: nothing goes over it before `until_us`, and then one
        connection as a probe."""
        self.failures = failures
        self.suspend(until_us, self.reason, "site", since_us)

    def suspend(self, until_us: int, reason: str, by: str, since_us: int = 0) -> None:
        """Stand still until then, for whatever reason."""
        self.since_us = since_us
        self.suspended_until_us = until_us
        self.suspended_by = by
        self.reason = reason
