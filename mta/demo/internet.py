"""The receivers of the demo: kinds of domains as one meets them, how they behave, and how much mail they get.

A kind becomes a personality of the sandbox (docs/sandbox.md). Times are short so that a run takes seconds: a greylist
of 4 s stands for one of 5 minutes, an outage of 6 s for one of hours.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

CONNECTIONS: Final = 8  # at once to one site, as the configuration of the MTA has it
OUTAGE_S: Final = 6
GREYLIST_S: Final = 4
DNS_FAILS_S: Final = 4

_UNKNOWN_USER: Final = "550 5.1.1 The address you tried to reach does not exist"
_FULL: Final = "452 4.2.2 The mailbox is full"


def _mx(*hosts: str) -> dict[str, Any]:
    return {"mx": list(hosts)}


@dataclass(frozen=True, slots=True)
class Kind:
    """Receivers that behave alike. `personality` is a mapping as in the sandbox's configuration."""

    key: str
    title: str  # at most 30 characters: a column of the summary
    story: str  # what they do, and what the MTA makes of it
    domains: int
    share: float  # of the mail
    personality: Mapping[str, Any]
    names: tuple[str, ...] = ()  # of the first domains; the others get made-up names
    favourite: float = 0.0  # share of the kind's mail that goes to its first domain
    from_campaign: bool = False  # the clock of its phases starts with the campaign


KINDS: Final = (
    Kind(
        "big", "big provider", f"One site for many domains, with TLS. It allows {CONNECTIONS} connections at once, as "
        "the configuration does: over all workers, at any moment. After 60 messages it answers 421 and wants a new "
        "one. Some addresses do not exist.", 60, 0.28,
        {"latency": "30ms", "starttls": "offered", "connections": CONNECTIONS, "messages": 60,
         "messages_reply": "421 4.7.0 Too many messages on this connection, make a new one",
         "dns": _mx("5 in1.gigamail.example", "10 in2.gigamail.example"),
         "rules": [{"at": "rcpt", "share": 0.04, "reply": _UNKNOWN_USER},
                   {"at": "rcpt", "share": 0.01, "reply": "552 5.2.2 The mailbox is over its quota"},
                   {"at": "rcpt", "share": 0.03, "times": 1,
                    "reply": "450 4.2.1 This user is receiving mail too quickly"}]},
        ("gigamail.example",), 0.4,
    ),
    Kind(
        "office", "mail host of companies", "One site for many domains, farther away. It would take any number of "
        f"connections, and gets the {CONNECTIONS} of the configuration.", 150, 0.19,
        {"latency": "50ms", "starttls": "offered", "dns": _mx("10 mx.officehost.example", "20 mx2.officehost.example"),
         "rules": [{"at": "rcpt", "share": 0.02, "reply": _UNKNOWN_USER}]},
    ),
    Kind(
        "stingy", "421 to a fourth connection", "Allows fewer connections than the configuration. The MTA finds out, "
        "and tries no further ones for a while.", 12, 0.03,
        {"latency": "30ms", "connections": 3, "dns": _mx("10 mx.narrowgate.example")}, ("narrowgate.example",), 0.3,
    ),
    Kind(
        "portal", "old portal", "Closes a connection after 20 messages without a word, and defers some mail by its own "
        "rules.", 6, 0.1,
        {"latency": "60ms", "messages": 20, "messages_reply": "",
         "dns": _mx("10 mx-a.oldportal.example", "10 mx-b.oldportal.example"),
         "rules": [{"at": "dot", "share": 0.08, "times": 1,
                    "reply": "451 4.7.0 [TS01] Messages from you are deferred due to user complaints"},
                   {"at": "rcpt", "share": 0.04, "reply": "554 5.7.9 Delivery error: no account with this name"}]},
        ("oldportal.example",), 0.7,
    ),
    Kind(
        "small", "small companies", "Each has a mail host of its own. Some mailboxes stay full: that mail is tried "
        "until it is too old.", 120, 0.15,
        {"latency": "20ms", "rules": [{"at": "rcpt", "share": 0.02, "reply": "550 5.1.1 User unknown"},
                                      {"at": "rcpt", "share": 0.03, "reply": _FULL}]},
    ),
    Kind(
        "grey", "greylisting", f"Refuses what it has not seen before, and takes it {GREYLIST_S} s later. The retry "
        "schedule does the rest.", 40, 0.07, {"latency": "20ms", "greylist": f"{GREYLIST_S}s"},
    ),
    Kind(
        "outage", f"down, back after {OUTAGE_S} s", "Refuses every connection at first. The site is paused as a whole; "
        "one probe at a time finds out when it is back. No message loses an attempt.", 6, 0.04,
        {"latency": "20ms", "dns": _mx("10 mx.backsoon.example"),
         "phases": [{"until": f"{OUTAGE_S}s", "listening": False}]},
        ("backsoon.example",), from_campaign=True,
    ),
    Kind(
        "limited", "limited rate", "Takes 12 messages in a second and answers 421 to the next one. The site is paused, "
        "then goes on where it was.", 1, 0.03,
        {"latency": "20ms", "rate": "12/s",
         "rate_reply": "421 4.7.28 Unusual rate of mail from your address, try again later"},
        ("carefulmail.example",),
    ),
    Kind(
        "slow", "slow", "Takes 0.7 s for every answer and reads 20 KB in a second. Nobody else waits for it.", 10, 0.02,
        {"latency": "700ms", "read_rate": "20KB"},
    ),
    Kind(
        "backup", "first MX down, second works", "The MTA goes on to the second one in the same attempt.", 8, 0.02,
        {"latency": "20ms", "dns": _mx("10 mx1.{domain} closed", "20 mx2.{domain}")},
    ),
    Kind("tls", "only with TLS", "530 to MAIL in clear: the MTA encrypts wherever it is offered.", 6, 0.02,
         {"latency": "20ms", "starttls": "required"}),
    Kind("old", "old: no EHLO, no pipelining", "Only understands HELO, one command at a time.", 4, 0.01,
         {"latency": "50ms", "esmtp": False}),
    Kind(
        "hangup", "hangs up on some mail", "Breaks the connection off instead of answering the message. It may have "
        "it or not: the MTA tries again and its events say `maybe_duplicate`.", 4, 0.015,
        {"latency": "20ms", "rules": [{"at": "dot", "share": 0.3, "times": 1, "drop": "rst"}]},
    ),
    Kind(
        "dns", f"DNS fails for {DNS_FAILS_S} s", "No answer is no reason to bounce: the mail waits.", 2, 0.01,
        {"dns": {"answer": "servfail"},
         "phases": [{"since": f"{DNS_FAILS_S}s", "latency": "20ms", "dns": {"answer": "normal"}}]},
        from_campaign=True,
    ),
    Kind("nullmx", "takes no mail (null MX)", "RFC 7505: bounced at once.", 2, 0.005, {"dns": _mx("0 .")}),
    Kind("typo", "no such domain", "Typing errors: bounced at once.", 4, 0.01, {"dns": {"answer": "nxdomain"}},
         ("gigamial.example", "gigamail.exmaple", "oldportl.example", "carefullmail.example")),
)
"""In the order of the summary."""

_FIRST: Final = (
    "amber", "birch", "blue", "bright", "cedar", "clear", "copper", "coral", "east", "fern", "flint", "forest", "frost",
    "glass", "gold", "granite", "green", "harbor", "hazel", "high", "iron", "ivory", "lake", "lark", "linden", "maple",
    "meadow", "mint", "moon", "north", "oak", "olive", "orchard", "pearl", "pine", "quartz", "raven", "red", "river",
    "rowan", "salt", "silver", "sky", "slate", "south", "spring", "stone", "summer", "swan", "thistle", "tide", "wheat",
    "white", "willow", "wind", "wood",
)  # fmt: skip
_SECOND: Final = (
    "bakery", "bank", "bikes", "books", "brewery", "bridge", "build", "cargo", "clinic", "crafts", "dental", "design",
    "farm", "field", "films", "foods", "games", "garden", "glassware", "hotel", "insure", "kitchen", "labs", "law",
    "logistics", "media", "motors", "music", "optics", "paper", "pharma", "photo", "press", "print", "rail", "robotics",
    "sails", "school", "shoes", "soft", "solar", "sports", "studio", "supply", "tea", "theatre", "tools", "tours",
    "travel", "vets", "wine", "works",
)  # fmt: skip


class Internet:
    """Who gets mail: the domains of every kind."""

    def __init__(self, rng: random.Random) -> None:
        names = [f"{first}{second}.example" for first in _FIRST for second in _SECOND]
        rng.shuffle(names)
        self.domains: dict[str, tuple[str, ...]] = {}  # by key of the kind
        self.kind_of: dict[str, Kind] = {}  # by domain
        for kind in KINDS:
            made_up = kind.domains - len(kind.names)
            self.domains[kind.key] = (*kind.names, *names[:made_up])
            del names[:made_up]
            self.kind_of.update(dict.fromkeys(self.domains[kind.key], kind))

    def sandbox_settings(self) -> dict[str, Any]:
        """The sandbox's configuration. Domains that are not ours, such as those of senders, take everything."""
        return {
            "default": {"latency": "10ms"},
            "hosts": 1000,
            "personalities": {kind.key: kind.personality for kind in KINDS},
            "domains": {domain: kind.key for domain, kind in self.kind_of.items()},
        }

    def late_personalities(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Names, of domains and of hosts they share, whose clock is to start with the campaign; and their personality.
        """
        for kind in KINDS:
            if kind.from_campaign:
                hosts = (exchange.split()[1] for exchange in kind.personality.get("dns", {}).get("mx", ()))
                for name in (*self.domains[kind.key], *hosts):
                    yield name, kind.personality

    def choose(self, rng: random.Random, kind: Kind) -> str:
        """A domain of `kind` to send to."""
        domains = self.domains[kind.key]
        return domains[0] if rng.random() < kind.favourite else rng.choice(domains)


def shares(count: int, kinds: Sequence[Kind] = KINDS) -> list[Kind]:
    """The kind of each of `count` recipients, by their shares; each kind at least once while there is room."""
    total = sum(kind.share for kind in kinds)
    wanted = {kind.key: max(int(kind.share / total * count), 1) for kind in kinds}
    result = [kind for kind in kinds for _ in range(wanted[kind.key])]
    return (result + [kinds[0]] * max(count - len(result), 0))[:count]
