"""A router over a table of DNS answers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from mta.config.hosts import Endpoint
from mta.config.schema import Config, Delivery, Listener, ShapingRules
from mta.config.shaping import DefaultLayer, Shaping
from mta.delivery.dns_answer import Answer
from mta.delivery.dns_wire import MailHost
from mta.delivery.routing import Route, RouteFailure, Router

OURS = "198.51.100.25"
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
USUAL = Shaping()


class FakeResolver:
    """Answers from a table; what is not in it has no such name. `FAILS` as records: the servers failed."""

    def __init__(self, table: dict[tuple[str, str], Any]) -> None:
        self.table = table
        self.asked: list[tuple[str, str]] = []
        self.expires: dict[tuple[str, str], float] = {}
        self.unproven: set[tuple[str, str]] = set()
        self.authentic: set[tuple[str, str]] = set()
        self.shortage = ""

    def query(self, name: str, record_type: str) -> Any:
        self.asked.append((name, record_type))
        records = self.table.get((name, record_type))
        if records is FAILS:
            return Answer("failure", (), 30.0, "192.0.2.53:53: SERVFAIL")
        if records:
            return Answer("ok", tuple(records), self.expires.get((name, record_type), 300.0),
                          authentic=(name, record_type) in self.authentic)
        known = any(name == other for other, _ in self.table)
        proven = (name, record_type) not in self.unproven
        return Answer("nodata" if known else "nxdomain", (), 60.0, proven=proven,
                      authentic=(name, record_type) in self.authentic)

    def knows(self, name: str, record_type: str) -> bool:
        """Only what was asked for."""
        return (name, record_type) in self.asked

    def prefetch(self, name: str, record_type: str) -> None:
        """Nothing: the table has it all."""


FAILS = object()


def mx(*hosts: tuple[int, str]) -> list[MailHost]:
    return [MailHost(*host) for host in hosts]


def router(table: dict[tuple[str, str], Any], config: Config | None = None,
           is_local: Callable[[str], bool] = lambda address: address == OURS) -> Router:
    return Router(config or Config(hostname="mta.example.net"), FakeResolver(table), is_local)


def shaped(**options: Any) -> Config:
    """A configuration with these options of shaping for all."""
    return Config(hostname="mta.example.net", shaping=ShapingRules(default=DefaultLayer.of(**options)))


def listening(*endpoints: str, port: int = 25, **delivery: Any) -> Config:
    """A configuration that listens, and delivers to `port`."""
    listeners = tuple(Listener(smtp=Endpoint.parse(text)) for text in endpoints)
    shaping = ShapingRules(default=DefaultLayer.of(port=port))
    return Config(hostname="mta.example.net", listeners=listeners, delivery=Delivery(**delivery), shaping=shaping)


def hosts(found: Route | RouteFailure) -> list[tuple[int, str]]:
    assert isinstance(found, Route), found
    return [(host.preference, host.name) for host in found.hosts]


def failure(found: Route | RouteFailure) -> tuple[bool, int, str]:
    assert isinstance(found, RouteFailure), found
    return found.permanent, found.code, found.enhanced
