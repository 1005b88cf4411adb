"""Runs one scenario of a failing site that several workers have mail for, in a gevent process of its own.

    python -m tests.delivery.breaker_program NAME

Prints nothing and ends with 0 when the rule held. The workers are engines in this process, on one table of limits.
"""

from tests.delivery.sited import Sited, join, quick, three  # noqa: I001 - patches first

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent

from mta.config.units import Duration
from mta.delivery import limit_table
from mta.delivery.explain import of_queue, standing
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold, PathState
from tests.delivery.world import clock_us, shaping

NAME = "mx.d.test"
HOUR_US = 3_600_000_000


class Failing(Sited):
    """A host that ends each connection before its greeting while `is_dead`, and keeps them waiting while `is_slow`."""

    is_dead = is_slow = False
    dies_once = False  # with the next connection, and from then on it is slow

    def converse(self, sock: Any) -> None:
        while self.is_slow:
            gevent.sleep(0.01)
        if self.dies_once:
            self.dies_once, self.is_slow = False, True
        elif not self.is_dead:
            super().converse(sock)


class Crew:
    """Workers that deliver to one host, that of the first."""

    def __init__(self, run: str, count: int, pause: float) -> None:
        self.run = run
        self.pause = pause
        self.worlds: list[Failing] = []
        for _ in range(count):
            self.begin_one()
        self.host = self.worlds[0]

    def begin_one(self) -> Failing:
        limits = Limits(self.run, len(self.worlds))
        world = Failing(limits=limits, pause=self.pause, shaping=quick(connections=10))
        join(self.worlds, world, limits)
        return world

    def until(self, happened: Any) -> None:
        self.host.until(happened)

    def told(self) -> int:
        """Events of pauses, of all workers."""
        return sum(world.shelf.told("suspended") for world in self.worlds)

    def quiet(self) -> bool:
        return not any(world.engine.connections for world in self.worlds) and not self.host.open

    def over(self) -> bool:
        return all(world.drained() for world in self.worlds) and self.quiet()

    def waiting(self) -> list[Failing]:
        """Those that wait for the probe of another one."""
        return [world for world in self.worlds
                if NAME in world.engine.paths and world.engine.paths[NAME].waiting_for == f"site:{NAME}"]

    def failures(self) -> list[int]:
        """By worker, those that know the path."""
        return [world.engine.paths[NAME].failures for world in self.worlds if NAME in world.engine.paths]


@contextmanager
def crew(count: int, pause: float) -> Iterator[Crew]:
    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        yield Crew(run, count, pause)


def one_worker_finds_out_and_one_probes() -> None:
    """The site is dead: the first worker with mail finds out, the others are told. After each pause there is one
    connection, whoever makes it, and one event. When the site is back all of the mail goes."""
    with crew(4, 0.2) as workers:
        host = workers.host
        host.is_dead = True
        host.make()
        workers.until(lambda: workers.told() >= 1)
        for world in workers.worlds:
            for _ in range(30):
                world.make()
        workers.until(lambda: workers.told() >= 4)
        workers.until(lambda: workers.quiet() and workers.failures() == 4 * [workers.told()])  # all have heard
        assert host.connections == workers.told()
        untils = {world.engine.paths[NAME].suspended_until_us for world in workers.worlds}
        assert len(untils) == 1
        host.is_dead = False
        workers.until(workers.over)
        assert len(host.taken) == 121
        assert workers.failures() == []  # nothing is remembered
        assert {state for _, state in host.engine.limits.states() if state.holds} == set()


def a_burst_of_all_is_one_outage() -> None:
    """All workers send when the site dies. However many connections that ends, in each of them, it is paused once."""
    with crew(3, 60.0) as workers:
        host = workers.host
        host.slow_s = 0.05
        for world in workers.worlds:
            for _ in range(100):
                world.make()
        workers.until(lambda: len(host.taken) >= 30)
        host.is_dead = True
        host.hates = b""
        workers.until(lambda: workers.failures() == [1, 1, 1] and workers.quiet())
        assert workers.told() == 1
        at = host.connections
        for world in workers.worlds:
            world.make()
            assert standing(world.engine, 0, "d.test", 1).state == "suspended"
        gevent.sleep(0.1)
        assert host.connections == at


def others_wait_for_the_probe_and_say_so() -> None:
    """While one worker tries the site the others open nothing, and name who does. When it is taken they go on at once,
    without a probe of their own."""
    with crew(3, 0.2) as workers:
        host = workers.host
        host.dies_once = True
        host.make()
        workers.until(lambda: workers.told() == 1)
        for world in workers.worlds:
            for _ in range(5):
                world.make()

        workers.until(lambda: host.open == 1 and len(workers.waiting()) == 2)
        prober = next(number for number, world in enumerate(workers.worlds) if world.engine.connections)
        for world in workers.waiting():
            [reason] = of_queue(world.engine, 0, "d.test", 1)[1]
            assert reason.kind == "site"
            assert f"{NAME} is being tried by worker {prober}, after: " in reason.text, reason
        assert host.open == 1
        others = workers.waiting()
        works = workers.worlds[prober].engine.breakers.works

        def taken(path: Any) -> None:
            host.is_slow = True
            works(path)

        workers.worlds[prober].engine.breakers.works = taken
        host.is_slow = False
        # Before anything of theirs is taken they have several connections: those are no probes.
        workers.until(lambda: min(len(world.engine.connections) for world in others) >= 3)
        assert len(host.taken) <= 6
        host.is_slow = False
        workers.until(workers.over)
        assert len(host.taken) == 16
        assert workers.told() == 1


def a_probe_that_was_taken_is_one_no_more() -> None:
    """Its connection goes on and carries mail: that keeps nobody from probing when the site fails once more."""
    with crew(2, 0.2) as workers:
        host, other = workers.worlds
        host.is_dead = True
        host.make()
        workers.until(lambda: workers.told() >= 1)
        host.is_dead = False
        host.slow_s = 0.1
        for _ in range(60):
            host.make()
        workers.until(lambda: host.taken and host.engine.connections)
        workers.until(lambda: host.engine.limits.holders(f"site:{NAME}") == {})
        assert host.engine.connections
        told_by(Limits(workers.run, 9), 1, 0.05)
        other.make()
        workers.until(lambda: other.drained())
        assert host.engine.connections
        workers.until(workers.over)


def a_probe_that_ends_without_a_verdict_is_another_ones() -> None:
    """Its session is open and its mail is gone, or it lacks a socket: the next worker tries."""
    with crew(2, 0.2) as workers:
        first, second = workers.worlds
        first.dies_once = True
        first.make()
        workers.until(lambda: workers.told() == 1)
        workers.until(lambda: first.open == 1)
        second.make()
        workers.until(lambda: workers.waiting() == [second])
        for connection in first.engine.connections:
            connection.stopping = True
            connection.abandon()
        first.is_slow = False
        workers.until(lambda: len(first.taken) == 2)


def who_has_not_heard_of_it_yet_does_not_probe_again() -> None:
    """All wake up from a pause at once. One probes, and the site is still dead; the next one has the lease before the
    nudge that tells it so. What the first one found is in the table by then: it opens nothing, and stands still as long
    as the others."""
    with crew(2, 60.0) as workers:
        host, late = workers.worlds
        host.is_dead = True
        host.make()
        late.make()
        workers.until(lambda: workers.failures() == [1, 1] and workers.quiet())
        hears, late.engine.limits.recv_nudges = late.engine.limits.recv_nudges, list
        at = host.connections
        host.engine.keeper.free("site", lambda path: True)
        workers.until(lambda: workers.told() == 2 and workers.quiet())
        assert workers.failures() == [2, 1]
        late.engine.keeper.free("site", lambda path: True)
        workers.until(lambda: workers.failures() == [2, 2] and workers.quiet())
        assert host.connections == at + 1
        assert workers.told() == 2
        until_us = {world.engine.paths[NAME].suspended_until_us for world in workers.worlds}
        assert len(until_us) == 1
        workers.until(lambda: not late.engine.scheduler.deliveries)  # it left memory
        assert late.engine.limits.holders(f"site:{NAME}") == late.engine.limits.holders(NAME) == {}
        late.engine.limits.recv_nudges = hears
        host.is_dead = False
        host.engine.keeper.free("site", lambda path: True)
        workers.until(workers.over)
        assert len(host.taken) == 2


def an_outage_after_the_one_that_is_known_is_news() -> None:
    """Several failures are known here, the pause is over. Before the worker hears anything another one is served, and
    the site fails anew: one nudge says both. It stands still with the others, opens nothing, and counts as they do."""
    with crew(1, 60.0) as workers:
        host, other = workers.host, Limits(workers.run, 9)
        host.is_dead = True
        told_by(other, 3, 60)
        host.make()
        workers.until(lambda: workers.failures() == [3])
        path = host.engine.paths[NAME]
        host.engine.keeper.free("site", lambda one: True)  # at the latest in the next turn of the hub it would probe
        other.update(f"site:{NAME}", lambda state: PathState())
        told_by(other, 1, 60)
        until_us = other.state(f"site:{NAME}").holds[0].until_us
        workers.until(lambda: path.suspended_until_us == until_us)
        workers.until(lambda: not host.engine.scheduler.deliveries and workers.quiet())
        assert workers.failures() == [1]
        assert (host.connections, workers.told()) == (0, 0)


def a_failure_after_an_outage_that_is_news_is_the_next_of_that() -> None:
    """A connection that has been on its way since before that fails then: it is of the new outage, whose pause is in
    force, or when that is over the second failure of it; not the fourth of the old one."""
    with crew(1, 60.0) as workers:
        host, other = workers.host, Limits(workers.run, 9)
        told_by(other, 3, 60)
        host.make()
        workers.until(lambda: workers.failures() == [3])
        path = host.engine.paths[NAME]
        for seconds, is_ours, failures in ((60, False, 1), (-1, True, 2)):
            path.failures, path.suspended_until_us = 3, 0
            path.since_us -= HOUR_US
            told_by(other, 1, seconds)
            assert host.engine.breakers.failed(path) is is_ours
            assert path.failures == failures


def a_probe_is_none_any_more_when_another_worker_was_served() -> None:
    """One waits for the site's greeting as a probe when another one, which had a session all the time, says that the
    site works: it is any connection from now on, however long it lasts, and keeps nobody from probing."""
    with crew(1, 60.0) as workers:
        host = workers.host
        host.is_dead = True
        host.make()
        workers.until(lambda: workers.told() == 1 and workers.quiet())
        host.is_dead, host.is_slow = False, True
        host.engine.keeper.free("site", lambda path: True)
        workers.until(lambda: host.open == 1)
        assert host.engine.limits.holders(f"site:{NAME}") == {0: 1}
        Limits(workers.run, 9).update(f"site:{NAME}", lambda state: PathState())
        workers.until(lambda: workers.failures() == [0])
        assert host.engine.limits.holders(f"site:{NAME}") == {}
        assert host.engine.limits.holders(NAME) == {0: 1}
        host.is_slow = False
        workers.until(workers.over)
        assert host.engine.limits.holders(NAME) == {}


TAKES_THE_PROBE = """
import select, sys, time
from mta.delivery.limits import Limits
limits = Limits(sys.argv[1], 9)
while limits.acquire([(sys.argv[2], 1)]):
    select.select([limits.fileno()], [], [])
    limits.recv_nudges()
print("it is mine", flush=True)
time.sleep(1000)
"""


def a_worker_that_is_killed_while_it_probes() -> None:
    """The supervisor clears what it held, and another one probes."""
    with crew(2, 0.3) as workers:
        host = workers.host
        host.is_dead = True
        host.make()
        workers.until(lambda: workers.told() >= 1)
        prober = subprocess.Popen([sys.executable, "-c", TAKES_THE_PROBE, workers.run, f"site:{NAME}"],
                                  stdout=subprocess.PIPE)
        assert prober.stdout is not None
        assert prober.stdout.readline()
        workers.worlds[1].make()
        workers.until(lambda: len(workers.waiting()) == 2)
        at = host.connections
        prober.kill()
        prober.wait()
        assert host.connections == at
        host.is_dead = False
        host.engine.limits.clear_worker(9)
        workers.until(workers.over)
        assert len(host.taken) == 2
        assert host.connections >= at + 1


def told_by(limits: Limits, failures: int, seconds: float, name: str = NAME) -> None:
    """As another worker says that the site fails."""
    now_us = clock_us()
    hold = Hold("all", now_us + int(seconds * 1e6), "failures", "421 elsewhere", now_us, float(failures))
    limits.update(f"site:{name}", lambda state: PathState((hold,)))


def mail_that_waits_for_a_probe_that_is_not_made_goes_on() -> None:
    """A message came from source `a` before and would go from there. The pause of that path seems to be over, but
    another worker has probed it meanwhile: it goes from `b`, by the connection that is there, as if nothing had been.
    """
    with crew(1, 60.0) as workers:
        limits, other = Limits(workers.run, 8), Limits(workers.run, 9)
        world = Sited(sources=three(), pools={"both": {"a": 1, "b": 1}}, limits=limits, pause=60.0,
                      shaping=shaping(idle=Duration(60)))
        site = f"a>{NAME}"
        told_by(other, 1, 60, site)
        world.make_for(pool="both")
        world.until(lambda: world.drained() and world.engine.paths[f"b>{NAME}"].idle)
        path = world.engine.paths[site]
        assert path.failures == 1
        told_by(other, 2, 60, site)  # nobody hears nudges here
        world.engine.keeper.free("site", lambda one: one is path)
        world.make_for(pool="both").source = "a"
        world.until(world.drained)
        assert path.failures == 2
        assert not path.claims
        assert world.clients == {"127.0.0.3": 1}
        assert world.messages == {"127.0.0.3": 2}
        assert world.shelf.told("deferred") == 0


def who_is_served_goes_by_what_it_sees() -> None:
    """A worker has a session that takes mail when another one says that the site fails: it goes on. One that has none
    stands still. Without mail for the site it costs nothing to hear of it, and with the first it is known."""
    with crew(3, 60.0) as workers:
        host, idle, late = workers.worlds
        other = Limits(workers.run, 9)
        idle.make()
        workers.until(lambda: idle.drained() and NAME not in idle.engine.paths)
        host.slow_s = 0.1
        for _ in range(50):
            host.make()
        workers.until(lambda: len(host.taken) >= 11)
        told_by(other, 3, 60)
        idle.make()
        late.make()
        host.until(lambda: len(host.taken) == 51)
        workers.until(lambda: NAME not in host.engine.paths)  # it has no failures to remember
        for world in (idle, late):
            workers.until(lambda world=world: standing(world.engine, 0, "d.test", 1).state == "suspended")
            [reason] = of_queue(world.engine, 0, "d.test", 1)[1]
            assert reason.text == f"{NAME} is suspended: 421 elsewhere", reason
            assert reason.numbers["failures"] == 3
        other.update(f"site:{NAME}", lambda state: PathState())
        workers.until(workers.over)
        assert len(host.taken) == 53
        assert workers.told() == 0


def a_worker_that_starts_again_knows() -> None:
    """What others found out is there for one that is started anew: it opens nothing."""
    with crew(1, 60.0) as workers:
        host = workers.host
        host.is_dead = True
        host.make()
        workers.until(lambda: workers.told() and workers.quiet())
        anew = workers.begin_one()
        anew.make()
        workers.until(lambda: standing(anew.engine, 0, "d.test", 1).state == "suspended")
        assert (host.connections, workers.told()) == (1, 1)
        assert anew.engine.paths[NAME].failures == 1


def an_operators_chance_is_one_for_all() -> None:
    """`mta retry --now` frees the path in all workers, with the pause in the table still in force: one of them probes.
    If that fails all stand still, for longer; if not all go on."""
    with crew(3, 60.0) as workers:
        host = workers.host
        host.is_dead = True
        for world in workers.worlds:
            world.make()
        workers.until(lambda: workers.told() and workers.quiet())
        at = host.connections

        def retry() -> None:
            for world in workers.worlds:
                world.engine.keeper.free("site", lambda path: True)

        retry()
        workers.until(lambda: workers.told() == 2 and workers.quiet())
        workers.until(lambda: workers.failures() == [2, 2, 2])
        assert host.connections == at + 1
        assert {world.engine.paths[NAME].suspended_until_us > clock_us() + 100e6 for world in workers.worlds} == {True}
        host.is_dead = False
        retry()
        workers.until(workers.over)
        assert len(host.taken) == 3
        assert workers.told() == 2


def a_full_table_leaves_each_to_itself() -> None:
    """Where the table is full of what it needs, each worker finds out by itself, as if it were alone."""
    with crew(2, 60.0) as workers:
        Limits.has_room = False
        host = workers.host
        host.is_dead = True
        for world in workers.worlds:
            world.make()
            workers.until(lambda world=world: world.shelf.told("suspended") and workers.quiet())
        assert workers.told() == 2
        assert list(host.engine.limits.states()) == []


if __name__ == "__main__":
    globals()[sys.argv[1]]()
