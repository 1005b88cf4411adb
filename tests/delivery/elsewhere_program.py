"""Runs one scenario of `message: elsewhere` with a real engine, in a gevent process of its own.

    python -m tests.delivery.elsewhere_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, quick, three  # noqa: I001 - patches first

import sys
import time
from typing import Any

import gevent
from gevent.server import StreamServer

from mta.config.loader import loads
from mta.config.schema import Retry, Shaping, Source
from mta.config.shaping import top_layer
from mta.config.units import Duration
from mta.delivery.explain import retry_of
from mta.delivery.routing import Addresses, Host, Route
from mta.delivery.settle import EARLY

FOREVER = float("inf")
SECOND = "127.0.0.9"  # address of the second host
RULES = """
hostname: mta.test
rules:
  - {name: other, text: 'try another', class: policy, message: %s, samples: ['451 4.7.1 try another']}
"""


class Divided(Sited):
    """A site of two hosts. Those in `refuses` (our address, their host) send mail elsewhere."""

    def __init__(self, message: str = "elsewhere", **options: Any) -> None:
        self.refuses: set[tuple[str, str]] = set()
        self.tried: list[tuple[str, str]] = []  # transactions, in their order
        super().__init__(rules=loads(RULES % message).rules, **options)
        self.second = StreamServer((SECOND, self.port), self.serve)
        self.second.start()
        gevent.spawn(self.wake)

    def wake(self) -> None:
        """As the store's checkpoints do for mail that was deferred."""
        while True:
            gevent.sleep(0.05)
            if any(one.due_us <= self.clock_us() for one in self.shelf.stored.values()):
                self.engine.scheduler._wake(0, "d.test", self.clock_us())

    def is_at_hand(self, domain: str) -> bool:
        """Nothing is."""
        return False

    def route(self, domain: str) -> Route:
        hosts = (Host(f"mx1.{domain}", self.port, 10), Host(f"mx2.{domain}", self.port, 20))
        return Route(f"mx.{domain}", hosts, FOREVER, False)

    def addresses(self, host: Host, shaping: Shaping) -> Addresses:
        return Addresses([(2, SECOND if host.name.startswith("mx2") else "127.0.0.1")], "", "", FOREVER, ())

    def converse(self, sock: Any) -> None:
        self.clients[sock.getpeername()[0]] += 1
        way = (sock.getpeername()[0], "mx2" if sock.getsockname()[0] == SECOND else "mx1")
        file = sock.makefile("rb")
        sock.sendall(b"220 mx\r\n")
        for line in file:
            verb = line[:4].upper()
            if verb == b"QUIT":
                sock.sendall(b"221 bye\r\n")
                return
            if verb == b"RCPT":
                self.tried.append(way)
                if way in self.refuses or ("", way[1]) in self.refuses or (way[0], "") in self.refuses:
                    sock.sendall(b"451 4.7.1 try another\r\n")
                    continue
            if verb == b"DATA":
                sock.sendall(b"354 go\r\n")
                while file.readline() != b".\r\n":
                    pass
                self.messages[way[0]] += 1
            sock.sendall(b"250 ok\r\n")

    def deferrals(self) -> list[dict[str, Any]]:
        return [event for event in self.shelf.events if event["event"] == "deferred"]


def slow(world: Divided) -> None:
    """A retry schedule of an hour."""
    hourly = top_layer(Retry(first=Duration(3600), jitter=0.0), Duration(432_000), {})
    object.__setattr__(world.config.shaping, "top", hourly)
    world.config.shaping._merged.clear()


def another_source_at_once() -> None:
    """What one source is refused goes from another one of the pool a second later, though the retry schedule says an
    hour; events and `mta explain` say what is avoided."""
    world = Divided(sources=three(c=Source(ipv4="127.0.0.4")), pools={"default": {"a": 1, "b": 1, "c": 0}})
    slow(world)
    world.refuses.add(("127.0.0.2", ""))
    begun = time.monotonic()
    for _ in range(10):
        world.make_for()
    world.until(lambda: world.deferrals())
    waiting = next(one for one in world.shelf.stored.values() if one.avoid)
    assert "goes another way as the rule on this reply says, not by source a" in retry_of(waiting).text
    world.until(world.over)
    assert time.monotonic() - begun < 10
    assert world.messages == {"127.0.0.3": 10}, world.messages
    refused = world.deferrals()
    assert 1 <= len(refused) <= 9, refused
    assert all(event["avoid"] == ["source:a"] and event["rule"] == "other" for event in refused)
    delivered = [event for event in world.shelf.events if event["event"] == "delivered"]
    assert sum(event["attempt"] == 2 for event in delivered) == len(refused)


def no_source_twice_and_then_the_schedule() -> None:
    """When every source has been refused it waits for the retry schedule; that then may have any source."""
    world = Divided(sources=three(c=Source(ipv4="127.0.0.4")))
    slow(world)
    world.refuses |= {("", "mx1")}
    world.make_for()
    world.until(lambda: len(world.deferrals()) == 3)
    gevent.sleep(0.1)
    one, = world.shelf.stored.values()
    assert sorted(way[0] for way in world.tried) == ["127.0.0.2", "127.0.0.3", "127.0.0.4"], world.tried
    assert (one.avoid, world.deferrals()[-1]["avoid"]) == ((), [])
    assert one.due_us - world.clock_us() > 3000e6


def with_one_source_it_is_defer() -> None:
    """Without another source there is no elsewhere: the retry schedule holds at once."""
    world = Divided()
    slow(world)
    world.refuses.add(("", "mx1"))
    world.make_for()
    world.until(lambda: world.deferrals())
    one, = world.shelf.stored.values()
    assert one.due_us - world.clock_us() > 3000e6
    assert len(world.tried) == 1


def a_source_that_stands_still_is_none() -> None:
    """The other source is suspended: then there is none."""
    world = Divided(sources=three())
    slow(world)
    world.make_for()
    world.until(world.over)
    lost = world.engine.sources.all["b"]
    lost.lost = "gone"
    world.engine.keeper.miss(lost)
    world.refuses.add(("127.0.0.2", ""))
    world.make_for()
    world.until(lambda: world.deferrals())
    one, = world.shelf.stored.values()
    assert one.due_us - world.clock_us() > 3000e6


def another_host() -> None:
    """`elsewhere host`: from the only source to the other host, at once; connections that are open to the first one do
    not take it."""
    world = Divided("elsewhere host", shaping=quick(connections=1))
    slow(world)
    world.refuses.add(("", "mx1"))
    for _ in range(5):
        world.make_for()
    world.until(world.over)
    assert [way[1] for way in world.tried].count("mx2") == 5
    assert world.messages == {"127.0.0.1": 5}
    assert all(event["avoid"] == ["host:mx1.d.test"] for event in world.deferrals())
    delivered = [event["remote_host"] for event in world.shelf.events if event["event"] == "delivered"]
    assert delivered == ["mx2.d.test"] * 5


def another_source_and_another_host() -> None:
    """`elsewhere host` with two sources: both change, and no more than that is tried."""
    world = Divided("elsewhere host", sources=three())
    slow(world)
    world.refuses |= {("", "mx1"), ("", "mx2")}
    world.make_for()
    world.until(lambda: len(world.deferrals()) == 2)
    gevent.sleep(0.1)
    one, = world.shelf.stored.values()
    assert one.due_us - world.clock_us() > 3000e6
    first, second = world.tried
    assert first[0] != second[0], world.tried
    assert (first[1], second[1]) == ("mx1", "mx2")


def a_host_that_is_all_there_is() -> None:
    """The other host cannot be reached: the first one has it again, and there is no circle of connections."""
    world = Divided("elsewhere host")
    slow(world)
    world.second.stop()
    world.refuses.add(("", "mx1"))
    world.make_for()
    world.until(lambda: len(world.deferrals()) == 2)
    gevent.sleep(0.3)
    assert len(world.tried) == 2
    assert sum(world.clients.values()) <= 3, world.clients


def not_for_ever() -> None:
    """With more sources than that only the first attempts go elsewhere."""
    world = Divided(sources={name: Source(ipv4=f"127.0.0.{number}") for number, name in enumerate("abcdefgh", 20)})
    slow(world)
    world.refuses.add(("", "mx1"))
    world.make_for()
    world.until(lambda: len(world.deferrals()) == EARLY + 1)
    gevent.sleep(0.1)
    one, = world.shelf.stored.values()
    assert one.due_us - world.clock_us() > 3000e6
    assert len({way[0] for way in world.tried}) == len(world.tried) == EARLY + 1
    assert (one.avoid, world.deferrals()[-1]["avoid"]) == ((), [])  # after the hour any source will do


if __name__ == "__main__":
    globals()[sys.argv[1]]()
