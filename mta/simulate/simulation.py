"""One simulation: the engine of one worker with everything around it made of models, and what comes of it.

Real are the scheduler, routes, lanes, paths, turns, pace, retries, the judgement of replies and the arithmetic of all
limits. Models are time, the disk, DNS, the wire and the receivers. One engine stands for all workers.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from mta.config.schema import Bounces, Config
from mta.config.schema import Source as SourceOptions
from mta.delivery.clock import ClockWatch
from mta.delivery.engine import Engine
from mta.delivery.lane import Lane
from mta.delivery.limits import Limits
from mta.delivery.path import Path
from mta.delivery.routing import Router
from mta.queue.records import Message
from mta.queue.retry import RetryClock
from mta.queue.store import Store
from mta.sandbox.settings import Settings
from mta.simulate.books import Books, Looks, SimulatedSettler, begin_books
from mta.simulate.campaign import Campaign, flows_of
from mta.simulate.kernel import VirtualHub
from mta.simulate.limits import SimulatedLimits
from mta.simulate.network import Machine, SimulatedConnection
from mta.simulate.receivers import Receivers
from mta.simulate.resolver import SimulatedResolver
from mta.simulate.result import Result, result_of
from mta.simulate.store import SimulatedStore

CAPACITY: Final = 5000.0  # messages per second that the MTA itself manages


class SimulationError(Exception):
    """A bug was found on the way: the result would mean nothing."""


class Simulation:
    """One run. Attributes are for tests, which may look and change things between `run` and `run`."""

    def __init__(self, config: Config, settings: Settings, campaign: Campaign, *, messages: int | None = None,
                 seed: int = 1, capacity: float = CAPACITY) -> None:
        """`messages`: in all, instead of what `campaign` says; `capacity`: messages per second of the MTA itself."""
        self._random = random.Random(seed)
        self.config = config = _simulated(config)
        hub = self.hub = VirtualHub()
        flows = flows_of(campaign, messages, domains_of(settings), self._random)
        self.store = SimulatedStore(hub, flows)
        self.limits = SimulatedLimits(hub)
        self.receivers = Receivers(hub, settings)
        self.resolver = SimulatedResolver(hub, self.receivers, config.dns)
        self.books = Books(hub)
        begin_books(self.books, self.store)
        self.books.on_end = hub.stop
        self._machine = Machine(hub, capacity)
        watch = ClockWatch(hub.clock_us, lambda: {0: 0}, lambda: int(hub.now * 1e6))
        router = Router(config, self.resolver, lambda address: False)
        self.settler = SimulatedSettler(config, lambda shard: 0, _no_content, hub.clock_us, watch)
        self.settler.retry = RetryClock(self._random)
        self.settler.provider_of = self.provider_of = router.provider_of
        self.settler.books = self.books
        self.store.expires_s = self.settler.expires_s
        self.engine = Engine(
            config, {0: cast(Store, self.store)}, router, cast(Limits, self.limits), self.settler,
            lambda store, message: b"", hub.clock_us, hub, self._connect)
        self.limits.nudged = self.engine.connecting.nudged
        self._looks = Looks(self.books, self.engine, self.store, self._rate_of)
        self._started = False

    def _connect(self, engine: Engine, path: Path, lane: Lane) -> SimulatedConnection:
        return SimulatedConnection(engine, path, lane, self.hub, self.receivers, self._machine)

    def run(self, hours: float) -> Result:
        """Let so many hours pass in all since the beginning, or less if all mail has ended before. Raises
        SimulationError."""
        with _seeded(self._random), _no_bugs():
            if not self._started:
                self._started = True
                self.engine.start()
                self.store.open_doors(self.engine.scheduler.add)
                self.hub.call_later(0.0, self._looks.look)
            with _seldom_collected():
                self.hub.run(hours * 3600.0)
            self._looks.count()
        return result_of(self.books, self.receivers, self.provider_of, self.hub.elapsed)

    def _rate_of(self, domain: str, pool: str) -> tuple[str, float, int] | None:
        """The site of a domain, the messages per second that it takes from all our sources together, and how many it
        has taken."""
        lane = self.engine.ways.lane_of(domain, pool)
        if lane is None or lane.route is None:
            return None
        host = self.receivers.internet.host(lane.route.hosts[0].name)
        rate = host.conduct.behaviour.rate
        if rate is None or not host.open:
            return None
        return host.site, rate.per_second * max(len(lane.paths), 1), self.receivers.site(host.site).taken


def domains_of(settings: Settings) -> list[str]:
    """The domains that the sandbox's file names, for mail that says nothing of its own; patterns give one each."""
    return [name.replace("*", "any") for name in settings.domains] or ["example.test"]


def _simulated(config: Config) -> Config:
    """Without what has to do with this machine: addresses of sources, listeners, notifications."""
    plain = {name: dataclasses.replace(one, ipv4=None, ipv6=None, proxy=None, tls_certificate=None, tls_key=None)
             for name, one in config.sources.items()}
    sources: dict[Any, SourceOptions] = plain
    bounces: Bounces = dataclasses.replace(config.bounces, send=False, delay_warning=None)
    return dataclasses.replace(
        config, sources=sources, listeners=(), bounces=bounces,
        delivery=dataclasses.replace(config.delivery, allow_loopback=True))


def _no_content(message: Message) -> bytes:
    return b""


@contextmanager
def _seeded(rng: random.Random) -> Iterator[None]:
    """What draws from the common source of numbers (order of equal hosts) draws from ours."""
    before = random.getstate()
    random.setstate(rng.getstate())
    try:
        yield
    finally:
        rng.setstate(random.getstate())
        random.setstate(before)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Many objects and few cycles: looking for them all the time would take a fifth of it."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Bugs(logging.Handler):
    """Keeps what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record)


@contextmanager
def _no_bugs() -> Iterator[None]:
    """The engine survives a bug with a line in the log; here it is the end. Nothing of the engine is logged."""
    logger, bugs = logging.getLogger("mta"), _Bugs()
    before = logger.propagate, logger.level
    logger.addHandler(bugs)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(bugs)
        logger.propagate = before[0]
        logger.setLevel(before[1])
    if bugs.found:
        first = bugs.found[0]
        raise SimulationError(first.getMessage()) from (first.exc_info[1] if first.exc_info else None)
