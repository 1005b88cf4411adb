"""What mail there is in a simulation: how much of it, to whom, with which labels, and when it comes.

A *part* is one kind of mail; each becomes a *flow* per recipient domain: so many messages, evenly over a time. A flow
is numbers alone. Its messages exist while something is done with them.
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NewType

from mta.config import tree
from mta.config.build import Builder
from mta.config.hosts import parse_name
from mta.config.kinds import KINDS, Kind
from mta.config.option import option
from mta.config.problems import ConfigError
from mta.config.schema import Priority
from mta.config.textfile import file_text
from mta.config.units import Duration, Rate, Size
from mta.queue.records import queue_name

MOST_DOMAINS: Final = 200_000
_RANGE: Final = re.compile(r"\{(\d{1,7})-(\d{1,7})\}")

Domains = NewType("Domains", str)


def parse_domains(text: str) -> Domains:
    """Read `example.org`, or a range of domains as in `d{1-1000}.test`. Raises ValueError."""
    found = _RANGE.search(text)
    if found is None:
        return Domains(parse_name(text))
    parse_name(_RANGE.sub(found.group(1), text))
    if not 0 <= int(found.group(2)) - int(found.group(1)) < MOST_DOMAINS:
        raise ValueError(f"{found.group(0)} is no range of up to {MOST_DOMAINS} numbers")
    return Domains(text.lower())


KINDS[Domains] = Kind("a domain, or a range of domains (d{1-1000}.test)", parse_domains, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of mail."""

    messages: int | None = option(
        None, "How many; unset: its part of the messages of the whole (`mta simulate --messages`) that no part claims.",
        min=0)
    domains: dict[Domains, float] = option(
        dict, "Recipient domains with their weights. `d{1-1000}.test` is a thousand domains that share the weight; "
        "unset: those that the sandbox's file names, alike.", example='{gmail.com: 40, "d{1-1000}.test": 20}', min=0)
    over: Duration = option(Duration(0), "In what time they come, evenly; 0: all at once.")
    rate: Rate | None = option(None, "How fast they come, instead of `over`.")
    start: Duration = option(Duration(0), "When the first one comes.")
    recipients: int = option(1, "Recipients of each message, all of one domain.", min=1)
    size: Size = option(Size(20_000), "Size of each message.")
    sender: str = option("news@sender.example", "Envelope sender.")
    tenant: str = option("", "Tenant.")
    campaign: str = option("", "Campaign.")
    pool: str = option("", "Pool.")
    priority: Priority = option("normal", "Priority.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """All mail of a simulation."""

    messages: int | None = option(None, "How many messages in all, if `--messages` does not say it.", min=0)
    parts: tuple[Part, ...] = option((Part(),), "Kinds of mail.")


@dataclass(slots=True)
class Flow:
    """The mail of one part to one domain: message number `k` of it comes at `at_us(k)`."""

    part: Part
    domain: str
    queue: str
    count: int
    first: int  # number of its first message among all
    start_us: int  # since the beginning, microseconds
    spacing_us: float

    def at_us(self, k: int) -> int:
        """When message number `k` of it comes, microseconds since the beginning."""
        return self.start_us + int(k * self.spacing_us)

    def arrived(self, elapsed_us: int) -> int:
        """How many have come."""
        if elapsed_us < self.start_us:
            return 0
        if not self.spacing_us:
            return self.count
        k = int((elapsed_us - self.start_us) / self.spacing_us) + 1
        while k > 0 and self.at_us(k - 1) > elapsed_us:
            k -= 1
        while k < self.count and self.at_us(k) <= elapsed_us:
            k += 1
        return min(k, self.count)


def read_campaign(path: str) -> Campaign:
    """The campaign in a YAML file. Raises ConfigError with all problems."""
    text, problem = file_text(path)
    if problem is not None:
        raise ConfigError([problem])
    return read_text(text, path)


def read_text(text: str, name: str = "<text>") -> Campaign:
    """The campaign in `text`. Raises ConfigError with all problems."""
    builder = Builder(name)
    root = tree.parse(text, builder.report)
    campaign: Any = Campaign()
    if isinstance(root, tree.Mapping):
        campaign = builder.section(root, Campaign, ())
    elif not builder.problems:
        builder.report(1, 1, "expected the options messages and parts")
    if builder.problems:
        raise ConfigError(builder.problems)
    made: Campaign = campaign
    return made


def flows_of(campaign: Campaign, messages: int | None, domains: list[str], rng: random.Random) -> list[Flow]:
    """All flows. `messages`: in all; `domains`: those of a part that names none. Phases of flows are drawn."""
    parts = campaign.parts
    total = messages if messages is not None else campaign.messages
    claimed = sum(part.messages or 0 for part in parts)
    free = [part for part in parts if part.messages is None]
    rest = _shares(max((total or 0) - claimed, 0), [1.0] * len(free))
    flows: list[Flow] = []
    first = 0
    for part in parts:
        count = part.messages if part.messages is not None else rest.pop(0)
        weights = _weights(part.domains or {Domains(name): 1.0 for name in domains})
        for domain, number in zip(weights, _shares(count, list(weights.values())), strict=True):
            if not number:
                continue
            over_s = count / part.rate.per_second if part.rate is not None else float(part.over)
            spacing_us = over_s * 1e6 / number
            name = queue_name(domain, part.tenant, part.campaign, part.pool, part.priority)
            start_us = int(part.start * 1e6 + rng.random() * spacing_us)
            flows.append(Flow(part, domain, name, number, first, start_us, spacing_us))
            first += number
    return flows


def _weights(domains: Mapping[Domains, float]) -> dict[str, float]:
    """With ranges written out."""
    weights: dict[str, float] = {}
    for name, weight in domains.items():
        found = _RANGE.search(name)
        names: list[str] = [name]
        if found:
            names = [_RANGE.sub(str(number), name) for number in range(int(found.group(1)), int(found.group(2)) + 1)]
        for one in names:
            weights[parse_name(one)] = weights.get(one, 0.0) + weight / len(names)
    return weights


def _shares(total: int, weights: list[float]) -> list[int]:
    """`total` by weight in whole numbers, which sum up to it."""
    whole = sum(weights)
    shares = []
    given, passed = 0, 0.0
    for weight in weights:
        passed += weight
        upto = round(total * passed / whole) if whole else 0
        shares.append(upto - given)
        given = upto
    return shares
