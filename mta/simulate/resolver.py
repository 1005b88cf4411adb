"""The DNS of a simulation: the sandbox's answers as `mta.delivery.dns.Resolver` would give and remember them."""

from __future__ import annotations

from typing import Any, Final

from mta.config import schema
from mta.delivery.dns_answer import Answer
from mta.delivery.dns_wire import MailHost, RecordType
from mta.simulate.kernel import VirtualHub
from mta.simulate.receivers import Receivers

KEPT: Final = 1_000_000
_SILENT: Final = ("timeout", "garbage", "wrong-id")  # nothing comes that could be an answer
_WORDS: Final = {"servfail": "SERVFAIL", "refused": "REFUSED", "formerr": "FORMERR"}


class SimulatedResolver:
    """See `mta.delivery.routing.Resolver`."""

    shortage = ""

    def __init__(self, hub: VirtualHub, receivers: Receivers, config: schema.Dns) -> None:
        self._hub = hub
        self._receivers = receivers
        self._config = config
        self._known: dict[tuple[str, str], Answer[Any]] = {}

    def query(self, name: str, record_type: RecordType) -> Any:
        """The answer, from memory as long as it is believed. Waits as long as the servers take."""
        known = self._known.get((name, record_type))
        if known is not None and known.expires > self._hub.now:
            return known
        answer = self._ask(name, record_type)
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[name, record_type] = answer
        return answer

    def knows(self, name: str, record_type: RecordType) -> bool:
        """Whether a `query` would not wait."""
        known = self._known.get((name, record_type))
        return known is not None and known.expires > self._hub.now

    def prefetch(self, name: str, record_type: RecordType) -> None:
        """Lookups cost next to nothing here."""

    def _ask(self, name: str, record_type: RecordType) -> Answer[Any]:
        found = self._receivers.names.resolve(name, record_type)
        config, hub = self._config, self._hub
        if found.kind in _SILENT or found.behaviour.delay > config.timeout:
            hub.sleep(config.timeout * config.attempts)
            return Answer("failure", (), hub.now + config.failure_ttl, "no server answered")
        hub.sleep(found.behaviour.delay)
        if found.kind in _WORDS:
            return Answer("failure", (), hub.now + config.failure_ttl, f"the server says {_WORDS[found.kind]}")
        ttl = min(max(found.behaviour.ttl, config.min_ttl), config.max_ttl)
        if found.kind == "nxdomain":
            return Answer("nxdomain", (), hub.now + min(ttl, config.negative_ttl))
        rows = [data for _, _, kind, data in found.records if kind == record_type]
        if not rows:
            if any(kind == "CNAME" and data == [f"{name}."] for _, _, kind, data in found.records):
                return Answer("failure", (), hub.now + config.failure_ttl, "a loop of aliases")
            return Answer("nodata", (), hub.now + min(ttl, config.negative_ttl))
        values: list[Any] = rows[0]
        if record_type == "MX":
            values = sorted(_mail_host(text) for text in rows[0])
        return Answer("ok", tuple(values), hub.now + ttl)


def _mail_host(text: str) -> MailHost:
    preference, host = text.split()
    return MailHost(int(preference), host if host == "." else host.rstrip("."))
