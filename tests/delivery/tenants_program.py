"""Runs one scenario of tenants and their limits with a real engine, in a gevent process of its own.

    python -m tests.delivery.tenants_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, join, quick  # noqa: I001 - patches first
from tests.delivery.world import listen, shaping

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import gevent
import gevent.event

from mta.config.schema import Tenant
from mta.config.units import Duration, parse_rate
from mta.delivery import limit_table
from mta.delivery.explain import standing
from mta.delivery.limits import Limits

COUNTS = """
import sys
from mta.delivery.limits import Limits
limits = Limits(sys.argv[1], 1)
limits.stock("queue:t", 5)
limits.close()
"""


@contextmanager
def limited(**options: Any) -> Iterator[tuple[Sited, Limits]]:
    """A world, and its table of limits, that is told of nudges."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, **options)
        gevent.spawn(listen, world, limits)
        yield world, limits


def tenants_share_by_weight() -> None:
    """One connection, two tenants with full queues: three messages of the heavy one for each of the light one, whoever
    came first; transactional mail of either goes before all."""
    world = Sited(tenants={"heavy": Tenant(weight=3)}, shaping=quick(connections=1))
    for _ in range(40):
        world.make_for(tenant="light", sender="light@x.test")
    for _ in range(40):
        world.make_for(tenant="heavy", sender="heavy@x.test")
    world.make_for(tenant="light", priority="transactional", sender="urgent@x.test")
    world.until(world.drained)
    senders = [sender.partition(b"<")[2].partition(b"@")[0] for sender in world.taken]
    assert b"urgent" in senders[:3]
    counts = Counter(senders[3:43])
    assert 28 <= counts[b"heavy"] <= 32, counts


def a_tenant_with_a_rate_does_not_hold_up_others() -> None:
    """It is passed over until its time; others go at once over the same connection."""
    with limited(tenants={"slow": Tenant(message_rate=(parse_rate("1/h"),))},
                 shaping=shaping(connections=1, idle=Duration(3600))) as (world, _):
        for _ in range(4):
            world.make_for(tenant="slow", sender="slow@x.test")
        for _ in range(20):
            world.make_for(tenant="quick", sender="quick@x.test")
        world.until(lambda: sum(b"quick" in sender for sender in world.taken) == 20)
        world.until(lambda: "rate of tenant slow (1/h) is used up" in standing(world.engine, 0, "slow@d.test", 1)[1])
        assert sum(b"slow" in sender for sender in world.taken) == 1
        config = deepcopy(world.config)
        object.__setattr__(config, "tenants", {})
        world.engine.configure(config, world)
        world.until(world.drained)
        assert world.connections == 1


def a_tenant_with_a_bound_on_messages_in_flight() -> None:
    """At most two at once over all connections and sites; each end lets the next one go."""
    with limited(tenants={"small": Tenant(concurrency=2)}) as (world, limits):
        world.slow_s = 0.02
        most = 0
        for number in range(12):
            world.make_for(tenant="small", domain=f"d{number % 4}.test")
        while not world.drained():
            in_flight = sum(len(one.jobs) for one in world.engine.connections)
            most = max(most, in_flight)
            gevent.sleep(0.001)
        assert most == 2, most
        assert len(world.taken) == 12
        assert limits.acquire([("tenant:small", 2)]) is None


def in_turn(tenant: Tenant, kind: str) -> None:
    """Two workers with mail of one tenant to three sites each; `kind` is the reason for which it waits."""
    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        worlds: list[Sited] = []
        asked: list[object] = []
        for number in range(2):
            limits = Limits(run, number)
            acquire = limits.acquire
            limits.acquire = lambda leases, acquire=acquire: asked.append(leases) or acquire(leases)
            world = Sited(tenants={"small": tenant}, limits=limits, shaping=shaping(idle=Duration(60)))
            join(worlds, world, limits)
        host = worlds[0]
        host.slow_s = 0.02
        for number in range(180):
            for which, world in enumerate(worlds):
                world.make_for(tenant="small", domain=f"d{number % 3}.test", sender=f"w{which}d{number % 3}@x.test")
        host.until(lambda: len(set(host.taken)) == 6)  # each has its connection
        begun = len(host.taken)
        kinds: set[str] = set()

        def enough() -> bool:
            kinds.update(found.kind for world in worlds if (found := world.engine.pacing.why("small")) is not None)
            return len(host.taken) >= begun + 60

        host.until(enough)
        assert kinds == {kind}
        counts = Counter(host.taken[begun:begun + 60])
        assert len(counts) == 6, counts
        assert 5 <= min(counts.values()) <= max(counts.values()) <= 20, counts
        assert len(asked) < 1000, len(asked)


def lanes_share_a_bound_on_messages_in_flight() -> None:
    """All sites in all workers get the same of it, and who is refused does not ask again and again."""
    in_turn(Tenant(concurrency=1), "tenant-concurrency")


def lanes_share_the_rate_of_a_tenant() -> None:
    """The same of a rate."""
    in_turn(Tenant(message_rate=(parse_rate("20/s"),)), "tenant-rate")


def a_bound_on_messages_in_flight_that_comes_meanwhile() -> None:
    """An operator's limit counts what is in flight when it comes, and nothing goes before that is below it; lowered,
    raised, ended and given again while messages are under way, it is exact, and in the end nobody holds anything."""
    class Held(Sited):
        gates: dict[bytes, gevent.event.Event]

        def took(self, sock: Any, sender: bytes) -> None:
            gate = self.gates[sender] = gevent.event.Event()
            self.at_once = max(self.at_once, len(self.gates))
            gate.wait(20.0)
            del self.gates[sender]
            super().took(sock, sender)

    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Held(limits=limits, shaping=quick(connections=8))
        world.gates, world.at_once = {}, 0
        holds, pacing = world.engine.holds, world.engine.pacing
        gevent.spawn(listen, world, limits)

        def limit(most: int) -> None:
            holds.limit("tenant:small", "connections", most, 3600, "operator", "a test")

        def under_way(count: int, held: int) -> None:
            world.until(lambda: (len(world.gates), sum(limits.holders("tenant:small").values())) == (count, held))

        def end(count: int) -> None:
            for gate in list(world.gates.values())[:count]:
                gate.set()
            gevent.sleep(0.05)

        for number in range(5):
            world.make_for(tenant="small", domain=f"d{number}.test", sender=f"s{number}@x.test")
        under_way(5, 0)
        limit(2)
        under_way(5, 5)
        for number in range(5, 20):
            world.make_for(tenant="small", domain=f"d{number % 5}.test", sender=f"s{number}@x.test")
        end(2)
        under_way(3, 3)
        end(1)
        under_way(2, 2)
        end(1)
        under_way(2, 2)
        limit(4)
        under_way(4, 4)
        limit(1)
        end(2)
        under_way(2, 2)
        end(2)
        under_way(1, 1)
        holds.lift("tenant:small", "operator")
        world.until(lambda: len(world.gates) > 1)
        limit(3)
        world.until(lambda: sum(limits.holders("tenant:small").values()) == len(world.gates))
        holds.lift("tenant:small", "operator")
        while not world.drained():
            end(8)
        assert limits.holders("tenant:small") == {}
        assert "small" not in pacing.tenants
        assert len(world.taken) == 20


def a_tenant_at_its_bound_costs_nothing() -> None:
    """While its message is in flight the others wait, and nothing goes round in circles."""
    with limited(tenants={"small": Tenant(concurrency=1)}) as (world, limits):
        world.slow_s = 1.0
        asked: list[object] = []
        acquire = limits.acquire
        limits.acquire = lambda leases: asked.append(leases) or acquire(leases)
        for _ in range(8):
            world.make_for(tenant="small")
        gevent.sleep(0.5)
        assert len(asked) < 30, len(asked)
        world.slow_s = 0.0
        world.until(world.drained)
        assert len(world.taken) == 8


def what_a_tenant_may_have() -> None:
    """452 when its queue is full, until something of it has left; and for the rest of the day when it had its messages.
    """
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"t": Tenant(queue_size=3, daily_volume=5)}, limits=limits)
        gevent.spawn(listen, world, limits)
        admit = world.engine.pacing.admit
        world.engine.pacing.await_counts(1)
        assert admit("other", 100) is None
        assert [admit("t", 1) for _ in range(3)] == [None] * 3
        refused = admit("t", 1)
        assert refused is not None
        assert (refused.code, refused.enhanced) == (452, "4.2.2")
        world.make_for(tenant="t")
        world.until(world.drained)
        assert admit("t", 1) is None
        world.engine.pacing.left("t", 3)
        assert admit("t", 1) is None
        refused = admit("t", 1)
        assert refused is not None
        assert (refused.code, refused.enhanced) == (452, "4.7.1")


def a_bound_on_a_queue_that_comes_by_a_reload() -> None:
    """What a tenant has queued already counts when it gets a bound, also for the second time; what comes and leaves
    while that is being counted is neither counted twice nor forgotten."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"t": Tenant()}, limits=limits)
        asked: list[Any] = []
        world.shelf.count_of_tenants = lambda tenants, done: asked.append(done)
        admit, left = world.engine.pacing.admit, world.engine.pacing.left
        for _ in range(2):
            config = deepcopy(world.config)
            object.__setattr__(config, "tenants", {"t": Tenant(queue_size=5)})
            world.engine.configure(config)
            assert [admit("t", 2) for _ in range(3)] == [None] * 3  # not in force yet
            left("t", 9)
            asked.pop()({"t": 7})
            assert limits.counted("queue:t") == 4
            assert admit("t", 1) is None
            refused = admit("t", 1)
            assert refused is not None
            assert refused.enhanced == "4.2.2"
            world.engine.configure(world.config)


def a_start_waits_for_what_tenants_have() -> None:
    """Doors open when all workers have counted the queues of tenants with a bound, so that no worker lets in more than
    the bound for want of the others' numbers, and none refuses too early. Tenants without a bound wait for nothing."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"t": Tenant(queue_size=10)}, limits=limits)
        pacing = world.engine.pacing
        asked: list[Any] = []
        world.shelf.count_of_tenants = lambda tenants, done: asked.append(done)
        limits.stock("queue:t", None)
        pacing.begin()
        waiting = gevent.spawn(pacing.await_counts, 2)
        gevent.sleep(0.05)
        asked.pop()({"t": 4})
        gevent.sleep(0.05)
        assert not waiting.dead
        subprocess.run([sys.executable, "-c", COUNTS, run], check=True)
        waiting.join(60)
        assert waiting.dead
        refused = pacing.admit("t", 2)
        assert refused is not None
        assert refused.enhanced == "4.2.2"
        assert pacing.admit("t", 1) is None
        Sited(limits=limits).engine.pacing.await_counts(2)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
