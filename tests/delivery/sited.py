"""A played world whose host notes where its clients come from, for scenarios of sources, pools, tenants, limits."""

from tests.delivery.world import CONTENT, World, listen, shaping  # noqa: I001 - patches first

from collections import Counter
from copy import deepcopy
from typing import Any

import gevent
import gevent.event

from mta.config.schema import ShapingRules, Source
from mta.config.shaping import Adaptive
from mta.config.units import Duration
from mta.delivery.limits import Limits
from mta.queue.records import Delivery, Message, Recipient, queue_name


def quick(**options: Any) -> ShapingRules:
    """With connections that do not rest for long, and as many as are configured from the beginning."""
    return shaping(idle=Duration(0.05), adaptive=Adaptive(enabled=False), **options)


class Sited(World):
    """A world whose host notes where its clients come from."""

    def __init__(self, **options: Any) -> None:
        self.clients: Counter[str] = Counter()  # connections
        self.messages: Counter[str] = Counter()
        self.greylisted: dict[bytes, str] = {}  # by sender: where it came from first
        self.greylists = False
        options.setdefault("shaping", quick())
        super().__init__(**options)

    def over(self) -> bool:
        """Whether nothing is left and every host has counted its session."""
        return self.drained() and not self.engine.connections and not self.open

    def converse(self, sock: Any) -> None:
        self.clients[sock.getpeername()[0]] += 1
        super().converse(sock)

    def took(self, sock: Any, sender: bytes) -> None:
        self.messages[sock.getpeername()[0]] += 1
        super().took(sock, sender)

    def make_for(self, pool: str = "", domain: str = "d.test", tenant: str = "", priority: str = "",
                 sender: str = "a@x.test") -> Delivery:
        self.number += 1
        message = Message(self.number << 10, sender, self.clock_us(), CONTENT, header_size=30, size=len(CONTENT))
        one = Delivery(message, 0, queue_name(domain, tenant, pool=pool, priority=priority), domain,
                       [Recipient(f"u@{domain}")], self.clock_us())
        self.shelf.stored[one.key] = deepcopy(one)
        self.engine.scheduler.add(0, one)
        return one


def join(worlds: list[Sited], world: Sited, limits: Limits) -> None:
    """One more worker: it delivers to the host of the first one, and hears of the leases."""
    worlds.append(world)
    world.port = worlds[0].port
    gevent.spawn(listen, world, limits)


def three(**more: Source) -> dict[str, Source]:
    """Sources on loopback."""
    return {"a": Source(ipv4="127.0.0.2"), "b": Source(ipv4="127.0.0.3"), **more}
