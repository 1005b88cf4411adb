"""Runs one scenario of decided suspensions and limits with a real engine, in a gevent process of its own.

    python -m tests.delivery.holds_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, join, quick, three  # noqa: I001 - patches first
from tests.delivery.world import listen

import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import gevent
import gevent.event

from mta.config.shaping import DomainLayer, SourceLayer
from mta.config.units import parse_rate
from mta.delivery import connecting, limit_table
from mta.delivery.explain import of_queue, standing
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold, PathState

ELSEWHERE = """
import sys, time
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold
run, change = sys.argv[1:]
verb, _, name = change.partition(" ")
now_us = time.time_ns() // 1000
hold = Hold("all", now_us + 60_000_000, "operator", f"no more of {name}", now_us)
limits = Limits(run, 1)
limits.update(name, lambda state: state.with_hold(hold) if verb == "suspend" else state.without("operator"))
limits.close()
"""


def what_is_held_by_name() -> None:
    """A source, a domain, a tenant, a path may be suspended by a decision, in whichever worker it was made: their mail
    leaves memory, other mail goes; lifted, it comes back at once. What is decided outlives a worker."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(sources=three(), pools={"default": {"a": 1, "b": 1}, "a": {"a": 1}}, limits=limits)
        gevent.spawn(listen, world, limits)

        def elsewhere(change: str) -> None:
            subprocess.run([sys.executable, "-c", ELSEWHERE, run, change], check=True)

        for name, queue, mail in (
                ("source:a", "d.test/a", {"pool": "a"}), ("domain:d.test", "d.test", {}),
                ("tenant:t", "t@d.test", {"tenant": "t"}), ("a>mx.d.test", "d.test/a", {"pool": "a"})):
            taken = len(world.taken)
            elsewhere(f"suspend {name}")
            world.until(lambda name=name: world.engine.holds.suspension((name,)))
            world.make_for(**mail)
            world.make_for(domain="e.test")
            world.until(lambda taken=taken: len(world.taken) == taken + 1)
            gevent.sleep(0.05)
            assert len(world.taken) == taken + 1
            state, reason, *_ = standing(world.engine, 0, queue, 1)
            assert state == "suspended", (name, state, reason)
            assert f"no more of {name}" in reason, reason
            world.until(lambda: not world.engine.scheduler.deliveries)
            elsewhere(f"lift {name}")
            world.until(world.over)
            assert len(world.taken) == taken + 2

        elsewhere("suspend domain:d.test")
        world.until(lambda: world.engine.holds.suspension(("domain:d.test",)))  # they share what is remembered of it
        again = Sited(limits=limits)
        again.make()
        gevent.sleep(0.05)
        assert not again.taken
        assert standing(again.engine, 0, "d.test", 1)[0] == "suspended"


def a_suspension_that_a_reload_meets() -> None:
    """A queue whose path is suspended is found by that after a reload, too, while nothing of it is in memory: the
    reason is told, and when the suspension is lifted its mail goes at once. Not by a way that a reload has changed."""
    world = Sited(sources=three(), pools={"default": {"a": 1}}, shaping=quick())
    engine = world.engine
    world.make_for()
    world.until(world.over)
    for name in ("a>mx.d.test", "source:a"):
        engine.holds.suspend(name, 3600, "rule listing", "550 you are listed")
        world.make_for()
        world.until(lambda: engine.scheduler.parked() and not engine.scheduler.queues)
        for _ in range(2):
            engine.configure(deepcopy(world.config), world)
            gevent.sleep(0.05)
            state, reason, *_ = standing(engine, 0, "d.test", world.clock_us() + 60_000_000)  # waits for its retry
            assert state == "suspended", (name, state, reason)
            assert "550 you are listed (by rule listing)" in reason, reason
            assert engine.scheduler.parked()
        taken = len(world.taken)
        engine.holds.lift(name, "rule listing")
        world.until(world.over)
        assert len(world.taken) == taken + 1
    engine.holds.suspend("source:a", 3600, "rule listing", "550 you are listed")
    config = deepcopy(world.config)
    config.pools["default"] = {"b": 1}
    engine.configure(config, world)
    assert standing(engine, 0, "d.test", world.clock_us() + 60_000_000).state == "waiting"


def a_suspension_outlasts_what_else_stops_its_path() -> None:
    """An operator suspends a path for five minutes. Its source is lost and comes back, its site fails by what another
    worker says, for longer, and works: its mail stays until the suspension is lifted, and that is what is told."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(sources=three(), pools={"default": {"a": 1}}, limits=limits)
        gevent.spawn(listen, world, limits)
        engine, name = world.engine, "a>mx.d.test"
        engine.holds.suspend(name, 300, "operator", "ticket 5")
        world.make_for()
        world.until(lambda: name in engine.paths and not engine.scheduler.deliveries)
        path = engine.paths[name]

        def stays() -> None:
            gevent.sleep(0.05)
            assert not world.taken
            state, reason, *_ = standing(engine, 0, "d.test", 1)
            assert (state, "ticket 5" in reason) == ("suspended", True), (state, reason)

        path.source.lost = "the address is gone"
        engine.keeper.hold_for_source(path)
        assert path.suspended_by == "source"
        path.source.lost = ""
        engine.keeper.free("source", lambda one: one is path)
        stays()
        site, now_us = f"site:{name}", world.clock_us()
        limits.update(site, lambda state: PathState((
            Hold("all", now_us + 3_600_000_000, "failures", "421 elsewhere", now_us, 1.0),)))
        engine.breakers.changed([site])
        assert path.suspended_by == "site"
        limits.update(site, lambda state: PathState())
        engine.breakers.changed([site])
        stays()
        engine.holds.lift(name, "operator")
        world.until(world.over)
        assert len(world.taken) == 1


def a_suspension_is_told_of_a_site_that_has_failed() -> None:
    """Mail waits for its retry in a worker that has just begun, the site's last pause is over, and the path is
    suspended: that is what it would meet. While the pause lasts that is told."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        for seconds, kind in ((-1, "suspension"), (60, "site")):
            world = Sited(limits=limits)
            engine, now_us = world.engine, world.clock_us()
            failed = Hold("all", now_us + seconds * 1_000_000, "failures", "421 elsewhere", now_us, 1.0)
            limits.update("site:mx.d.test", lambda state, failed=failed: PathState((failed,)))
            engine.holds.suspend("mx.d.test", 30, "operator", "ticket 6")
            engine.foresight.look([("d.test", "")])
            state, [reason] = of_queue(engine, 0, "d.test", now_us + 60_000_000)
            assert (state, reason.kind) == ("suspended", kind), (state, reason)
            assert ("ticket 6" if kind == "suspension" else "421 elsewhere") in reason.text, reason


def limits_that_a_hold_lowers() -> None:
    """Connections and rate of a path, for a while; then what is configured is in force again by itself."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, shaping=quick(connections=10))
        gevent.spawn(listen, world, limits)
        world.slow_s = 0.02
        holds = world.engine.holds
        holds.limit("mx.d.test", "connections", 1, 3600, "rule few", "421 too many")
        for _ in range(5):
            world.make()
        world.until(lambda: len(world.taken) == 5)
        assert world.most_open == 1
        holds.limit("mx.d.test", "connections", 1, 0.2, "rule few", "421 too many")  # in place of the longer one
        world.make()
        path = world.engine.paths["mx.d.test"]
        world.until(lambda: path.most == 10)
        world.until(world.over)
        holds.limit("mx.d.test", "rate", 0.001, 3600, "rule slow", "421 slow down")
        for _ in range(5):
            world.make()
        world.until(lambda: "mx.d.test is held to 3.6/h" in standing(world.engine, 0, "d.test", 1)[1])
        assert len(world.taken) <= 6 + 1
        holds.limit("mx.d.test", "rate", 0.001, 0.2, "rule slow", "421 slow down")
        world.until(world.over)


def a_source_that_is_limited() -> None:
    """Its connections are counted over all its paths and over all workers, whatever the site; those that are open when
    the limit comes count in it, and those too many end though there is mail for them. Another source is not concerned;
    the reason is told; lifted there are as many as ever. A rate is one for all of its paths, too."""
    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        worlds: list[Sited] = []
        for number in range(2):
            limits = Limits(run, number)
            world = Sited(sources=three(), pools={"default": {"a": 1}, "b": {"b": 1}}, limits=limits,
                          shaping=quick(connections=10))
            join(worlds, world, limits)
        first, second = worlds
        domains = [f"d{number}.test" for number in range(4)]

        def fill(count: int) -> None:
            for world in worlds:
                for domain in domains * count:
                    world.make_for(domain=domain)

        def leaving(source: str = "a") -> int:
            return sum(one.path.source.name == source for world in worlds for one in world.engine.connections)

        def is_over() -> bool:
            return all(world.drained() for world in worlds) and not leaving()

        first.slow_s = second.slow_s = 0.1
        fill(20)
        first.until(lambda: leaving() >= 8)
        first.engine.holds.limit("source:a", "connections", 2, 3600, "operator", "ticket 4")
        first.until(lambda: second.engine.holds.lowest("connections", ("source:a",)))
        held = first.engine.limits.holders("source:a")
        assert sum(held.values()) == leaving() > 2, held
        first.until(lambda: leaving() <= 2)
        most = 0
        while not all(world.drained() for world in worlds):
            most = max(most, leaving())
            said = [standing(world.engine, 0, domain, 1).reason for world in worlds for domain in domains]
            if most and any("limit of 2 connections in all to source:a is reached, over all workers: ticket 4" in one
                            for one in said):
                break
            gevent.sleep(0.005)
        else:
            raise AssertionError("the reason was not told")
        first.make_for(pool="b")
        first.until(lambda: leaving("b") == 1)
        while not is_over():
            most = max(most, leaving())
            gevent.sleep(0.005)
        assert most == 2
        first.engine.holds.lift("source:a", "operator")
        first.until(lambda: not second.engine.holds.lowest("connections", ("source:a",)))
        fill(2)
        first.until(lambda: leaving() >= 8)
        first.until(is_over)
        first.until(lambda: not first.engine.limits.holders("source:a"))  # one that was just granted is given back, too

        taken = len(first.taken) + len(second.taken)
        first.engine.holds.limit("source:a", "rate", 0.001, 3600, "operator", "ticket 5")
        first.until(lambda: second.engine.holds.lowest("rate", ("source:a",)))
        fill(1)
        first.until(lambda: len(first.taken) + len(second.taken) == taken + 1)
        gevent.sleep(0.05)
        assert len(first.taken) + len(second.taken) == taken + 1


def connections_that_are_open_count_in_a_limit_that_comes() -> None:
    """Of a domain with connections of its own, and of a reload, too: those too many end though there is mail for them,
    and no other one is opened. The same when the limit is lower than one that there was."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(sources=three(), pools={"default": {"a": 1}, "b": {"b": 1}}, limits=limits,
                      shaping=replace(quick(connections=10), domains={"d.test": DomainLayer.of(connections=10)}))
        gevent.spawn(listen, world, limits)
        connecting.TURN_S = 0.05
        world.slow_s = 0.02
        engine = world.engine

        def ordered(most: int) -> None:
            engine.holds.limit("domain:d.test", "connections", most, 3600, "operator", "ticket 4")

        def configured(most: int) -> None:
            sources = {"a": SourceLayer.of(total_connections=most), "b": SourceLayer.of(total_connections=most)}
            engine.configure(replace(world.config, shaping=replace(world.config.shaping, sources=sources)), world)

        for limit, pools, name in ((ordered, ("", "b"), "domain:d.test"), (configured, ("",), "source:a")):
            for pool in pools * 300:
                world.make_for(pool)
            world.until(lambda: len(engine.connections) >= 9)
            for most in (5, 2):
                limit(most)
                world.until(lambda name=name: sum(limits.holders(name).values()) == len(engine.connections))
                world.until(lambda most=most: len(engine.connections) <= most)
                assert not world.drained()
                at = world.connections
                gevent.sleep(0.05)
                assert len(engine.connections) <= most
                assert world.connections <= at + 1
            engine.holds.lift("domain:d.test", "operator")
            configured(100)
            world.until(world.over)
        assert limits.holders("domain:d.test") == limits.holders("source:a") == {}


def the_lowest_of_several_rates_is_the_reason() -> None:
    """Of a path's own rate and one of a hold that is named which is lower; both numbers are told."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, shaping=quick(message_rate=(parse_rate("1/h"),)))
        gevent.spawn(listen, world, limits)

        def told(rates: str, kind: str, remedy: str) -> bool:
            for one in of_queue(world.engine, 0, "d.test", 1)[1]:
                if f"({rates})" in one.text and one.kind == kind:
                    assert remedy in one.remedy, one
                    return True
            return False

        world.engine.holds.limit("mx.d.test", "rate", 5.0, 3600, "rule slow", "421 slow down")
        for _ in range(3):
            world.make()
        world.until(lambda: told("1/h, 5/s", "rate", "`message_rate` in shaping"))
        assert "is held to" not in standing(world.engine, 0, "d.test", 1)[1]
        world.engine.holds.limit("mx.d.test", "rate", 1 / 7200, 3600, "rule slow", "421 slow down")
        world.until(lambda: told("1/h, 0.5/h", "rate", "mta rules show slow"))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
