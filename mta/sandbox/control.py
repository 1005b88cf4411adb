"""The control socket: one JSON object per line asks, one per line answers.

A question is `{"do": NAME, ...}`, the answer `{"ok": true, "result": ...}` or `{"ok": false, "error": "..."}`. Long
lists come before it in portions, `{"part": [...]}`. The questions are in `mta.sandbox.client`, and in docs/sandbox.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import gevent
from gevent.event import Event

from mta.config.hosts import parse_endpoint
from mta.config.problems import ConfigError
from mta.sandbox.ledger import DomainCounts, Ledger, Presence, SiteCounts, Violation
from mta.sandbox.reading import read_name, read_personality
from mta.sandbox.receiver import Receiver
from mta.sandbox.settings import Settings, on_loopback

MAX_LINE: Final = 16_000_000
PORTION: Final = 500


class Control:
    """Answers questions about one sandbox and changes it. `stop` is called when somebody asks for the end."""

    def __init__(self, settings: Settings, receiver: Receiver, stop: Callable[[], None]) -> None:
        self.settings = settings
        self.receiver = receiver
        self.ledger: Ledger = receiver.ledger
        self.stop = stop
        self._path = ""
        self._requests: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "stats": lambda request: self.stats(),
            "domain": lambda request: _domain(self.ledger.domain(str(request["name"]))),
            "domains": lambda request: self._domains(),
            "sites": lambda request: self._sites(),
            "received": lambda request: self.ledger.received(),
            "log": lambda request: _portions(map(dataclasses.asdict, list(self.ledger.log))),
            "arrivals": lambda request: _portions(iter(list(self.ledger.arrivals))),
            "visits": lambda request: _portions(map(dataclasses.astuple, list(self.ledger.visits))),
            "questions": lambda request: _portions(iter(list(self.ledger.questions.items()))),
            "host": lambda request: self._host(str(request["name"])),
            "wait": self._wait,
            "set": self._set,
            "reset": lambda request: self._reset(),
            "stop": lambda request: self.stop(),
        }

    def start(self, where: str) -> str:
        """Listen on a path or a loopback `host:port`; returns where. Raises OSError, ValueError."""
        if "/" in where:
            listener = socket.socket(socket.AF_UNIX)
            _remove_dead(where)
            listener.bind(where)
            self._path = where
        else:
            endpoint = on_loopback(parse_endpoint(where))
            listener = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(endpoint)
            where = str(endpoint._replace(port=listener.getsockname()[1]))
        listener.listen(100)
        gevent.spawn(self._serve, listener)
        return where

    def close(self) -> None:
        """Remove the socket's path."""
        if self._path:
            try:
                os.unlink(self._path)
            except OSError:
                pass

    # --- the network -----------------------------------------------------------------------------------------------

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                gevent.sleep(0.1)
                continue
            gevent.spawn(self._converse, accepted)

    def _converse(self, accepted: socket.socket) -> None:
        with accepted, accepted.makefile("rb") as stream:
            try:
                while line := stream.readline(MAX_LINE):
                    for answer in self._answers(line):
                        accepted.sendall(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            except OSError:
                return

    def _answers(self, line: bytes) -> Iterator[dict[str, Any]]:
        try:
            request = json.loads(line)
            handler = self._requests[request["do"]]
            result = handler(request)
            if isinstance(result, Iterator):
                for part in result:
                    yield {"part": part}
                    gevent.sleep(0)
                result = None
            yield {"ok": True, "result": result}
        except ConfigError as error:
            yield {"ok": False, "error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield {"ok": False, "error": f"{type(error).__name__}: {error}"}

    # --- the answers -----------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """The sums over everything."""
        ledger = self.ledger
        usage = resource.getrusage(resource.RUSAGE_SELF)
        replies: dict[int, int] = {}
        for site in ledger.sites.values():
            for code, count in site.replies.items():
                replies[code] = replies.get(code, 0) + count
        return {
            **dataclasses.asdict(ledger.totals),
            "open": len(ledger.presence.sessions),
            "max_open": ledger.presence.maximum,
            "replies": dict(sorted(replies.items())),
            "violations": {kind: _violation(entry) for kind, entry in ledger.violations.items()},
            "dns_answers": dict(ledger.dns_answers),
            "first_at": ledger.first_at,
            "last_at": ledger.last_at,
            "elapsed": time.monotonic() - ledger.started,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_memory": usage.ru_maxrss * 1024,
        }

    def _domains(self) -> Iterator[list[Any]]:
        return _portions((name, _domain(counts)) for name, counts in list(self.ledger.domains.items()))

    def _sites(self) -> Iterator[list[Any]]:
        return _portions((name, _site(counts)) for name, counts in list(self.ledger.sites.items()))

    def _host(self, name: str) -> dict[str, Any]:
        host = self.receiver.internet.host(name.lower())
        return {"name": host.name, "address": host.address, "site": host.site, "state": host.state, "open": host.open}

    def _wait(self, request: Mapping[str, Any]) -> bool:
        """Wait until counts are reached, of a domain or of all; whether they are before the time is over."""
        domain = request.get("domain")
        wanted = {str(name): int(count) for name, count in request["at_least"].items()}
        changed = Event()
        self.ledger.watchers.append(changed.set)
        try:
            with gevent.Timeout(float(request["timeout"]), False):
                while True:
                    changed.clear()
                    counts = self.ledger.totals if domain is None else self.ledger.domain(str(domain))
                    if all(getattr(counts, name) >= count for name, count in wanted.items()):
                        return True
                    changed.wait()
            return False
        finally:
            self.ledger.watchers.remove(changed.set)

    def _set(self, request: Mapping[str, Any]) -> None:
        name = read_name(str(request["name"]))
        self.receiver.internet.set(name, read_personality(request["personality"], self.settings))

    def _reset(self) -> None:
        self.ledger.reset()
        self.receiver.forget()


def _portions(items: Iterator[Any]) -> Iterator[list[Any]]:
    portion: list[Any] = []
    for item in items:
        portion.append(item)
        if len(portion) == PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


def _presence(presence: Presence) -> dict[str, int]:
    return {"connections": presence.total, "open": len(presence.sessions), "max_open": presence.maximum}


def _domain(counts: DomainCounts) -> dict[str, Any]:
    return {
        "messages": counts.messages, "recipients": counts.recipients, "distinct": counts.distinct,
        "duplicates": counts.duplicates, "unanswered": counts.unanswered, "deferred": counts.deferred,
        "rejected": counts.rejected, "dropped": counts.dropped, "octets": counts.octets,
        "replies": dict(sorted(counts.replies.items())), **_presence(counts.presence),
    }


def _site(counts: SiteCounts) -> dict[str, Any]:
    return {
        "refused": counts.refused, "replies": dict(sorted(counts.replies.items())), **_presence(counts.presence),
        "clients": {client: _presence(presence) for client, presence in counts.clients.items()},
    }


def _violation(entry: Violation) -> dict[str, Any]:
    return {"count": entry.count, "example": entry.example}


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError when somebody does."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(f"another sandbox listens on {path}")
