"""Labels: whose mail a message is (tenant), what it is part of (campaign), where it leaves from (pool), its priority.

Each comes from the first place that gives it: a header field, the user who logged in, the listener or spool directory,
the domain of the sender, what the tenant says of its mail (pool and priority), the default. The fields of `labels` are
removed, also where they are not believed. What a field says becomes part of a queue's name only when it has the form of
a name (I7).

Hot path: one search over the header section (bench/throughput.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.config.schema import Config, LabelValues
from mta.message import headers
from mta.smtp.address import domain_to_ascii
from mta.smtp.reply import Reply

KINDS: Final = ("tenant", "campaign", "pool", "priority")
PRIORITIES: Final = ("transactional", "normal", "bulk")

_VALUE = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Labels(NamedTuple):
    """The labels of one message; empty where there is none. `normal` is a priority that something gave; in the name of
    a queue it is none."""

    tenant: str = ""
    campaign: str = ""
    pool: str = ""
    priority: str = ""


NO_LABELS: Final = Labels()


class Labeller:
    """Reads the labels of messages by one configuration."""

    def __init__(self, config: Config) -> None:
        labels = config.labels
        self._fields: list[tuple[str, str]] = []  # kind and name of each header field, by precedence
        for kind in KINDS:
            self._fields += [(kind, name) for name in getattr(labels, kind)]
        # With a literal in front the search is fast; a group tells which field it was.
        names = b"|".join(b"(" + re.escape(name.encode()) + b")" for _, name in self._fields)
        self._search = re.compile(rb"\r\n(?i:" + names + rb")[ \t]*:").finditer if names else None
        self._ignores = labels.invalid == "ignore"
        self._senders = labels.senders
        self._tenants = config.tenants
        self._pools = {*config.pools, *config.sources, "default"}
        self._default = labels.default
        # Where nothing but header fields gives labels, most messages are done with the search.
        self._plain = not (labels.senders or config.tenants) and labels.default == LabelValues()

    def read(self, content: bytes, end: int, sender: str, given: LabelValues | None, believed: bool,
             ) -> tuple[Labels, Sequence[str]] | Reply:
        """The labels of a message and the fields to remove from it, or the reply that refuses it. Hot path.

        `end` is the length of the header section; `given` are the labels of where it came in, whose header fields are
        `believed` or not.
        """
        found: dict[str, tuple[int, str]] = {}
        present: list[str] = []
        if self._search is not None:
            section = b"\r\n" + content[:end]
            for match in self._search(section):
                number = match.lastindex or 1
                kind, name = self._fields[number - 1]
                present.append(name)
                if not believed or (kind in found and found[kind][0] <= number):
                    continue
                raw = headers.unfolded(section, match.end())
                if not raw:
                    continue
                fault = self._fault(kind, raw)
                if not fault:
                    found[kind] = (number, raw.decode("ascii"))
                elif not self._ignores:
                    return Reply(550, "5.7.1" if kind == "pool" and _VALUE.fullmatch(raw) else "5.6.0",
                                 (f"{name}: {fault}",))
        if not found and self._plain and (given is None or given == self._default):
            return NO_LABELS, present
        return self._labels({kind: value for kind, (_, value) in found.items()}, sender, given), present

    def _fault(self, kind: str, raw: bytes) -> str:
        """What is wrong with a value."""
        if not _VALUE.fullmatch(raw):
            return "expected 1 to 64 letters, digits, dots, hyphens and underscores"
        value = raw.decode("ascii")
        if kind == "priority" and value.lower() not in PRIORITIES:
            return f"expected {', '.join(PRIORITIES[:-1])} or {PRIORITIES[-1]}"
        if kind == "pool" and value not in self._pools:
            return f"there is no pool {value} here"
        return ""

    def _labels(self, found: dict[str, str], sender: str, given: LabelValues | None) -> Labels:
        places = [given] if given is not None else []
        if self._senders:
            of_sender = self._senders.get(domain_to_ascii(sender.rpartition("@")[2]))
            if of_sender is not None:
                places.append(of_sender)
        places.append(self._default)
        tenant = found.get("tenant") or next((one.tenant for one in places if one.tenant), "")
        of_tenant = self._tenants.get(tenant)
        if of_tenant is not None:
            places.insert(-1, LabelValues(pool=of_tenant.pool, priority=of_tenant.priority))
        pool = found.get("pool") or next((one.pool for one in places if one.pool), "")
        priority = found.get("priority", "").lower() or next((one.priority for one in places if one.priority), "")
        return Labels(
            tenant, found.get("campaign") or next((one.campaign for one in places if one.campaign), ""),
            "" if pool == "default" else pool, priority)
