"""Runs one scenario of sources, pools and rates with a real engine, in a gevent process of its own.

    python -m tests.delivery.lanes_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, join, quick, three  # noqa: I001 - patches first
from tests.delivery.world import FOREVER, clock_us, listen, shaping

import sys
import tempfile
import time
from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from gevent.server import StreamServer

from mta.config.schema import Delivery as DeliverySettings
from mta.config.schema import ShapingRules, Source
from mta.config.shaping import DomainLayer, ProviderLayer
from mta.config.hosts import parse_proxy
from mta.config.units import Duration, parse_rate
from mta.delivery import dispatch, limit_table, pathkeeping, sources
from mta.delivery.explain import standing
from mta.delivery.limits import Limits
from mta.delivery.routing import RouteFailure

ABSENT = "192.0.2.77"  # no machine has it (RFC 5737)


def connections_leave_by_weight() -> None:
    """Each connection has the source whose turn it is; the pool of mail without a label is the one named `default`."""
    world = Sited(sources=three(c=Source(ipv4="127.0.0.4")), pools={"default": {"a": 3, "b": 1, "c": 0}},
                  shaping=quick(messages_per_connection=1, connections=100))
    for _ in range(40):
        world.make()
    world.until(world.over)
    assert world.clients["127.0.0.2"] + world.clients["127.0.0.3"] == 40, world.clients
    assert 27 <= world.clients["127.0.0.2"] <= 33, world.clients


def sources_share_a_limit_by_weight() -> None:
    """A limit over all sources is full all the time, so each lease that becomes free, or is granted by another worker,
    is waited for by all of them: the weights of the pool decide who has it, not the line."""
    came: list[str] = []

    class Ordered(Sited):
        def converse(self, sock: Any) -> None:
            came.append(sock.getpeername()[0])
            super().converse(sock)

    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        rules = ShapingRules(default=quick(messages_per_connection=1, connections=100).default,
                             domains={"d.test": DomainLayer.of(total_connections=7)})
        worlds: list[Sited] = []
        for number in range(2):
            limits = Limits(run, number)
            world = Ordered(sources=three(c=Source(ipv4="127.0.0.4")), pools={"default": {"a": 1, "b": 2, "c": 4}},
                            shaping=rules, limits=limits)
            join(worlds, world, limits)
        host = worlds[0]
        host.slow_s = 0.05
        for _ in range(140):
            for world in worlds:
                world.make()
        host.until(lambda: len(came) >= 203)
        counts = [came[:203].count(f"127.0.0.{number}") for number in (2, 3, 4)]
        assert host.most_open == 7
        assert all(abs(got - due) <= 6 for got, due in zip(counts, (29, 58, 116), strict=True)), counts


def pools_have_lanes_of_their_own() -> None:
    """Two pools to one site: each mail leaves from a source of its pool, and where they share a source they share its
    connections."""
    world = Sited(sources=three(), pools={"p": {"a": 1}, "q": {"b": 1}, "both": {"a": 1, "b": 1}},
                  shaping=quick(connections=1))
    world.slow_s = 0.01
    for _ in range(10):
        world.make_for("p")
        world.make_for("q")
        world.make_for("both")
    assert set(world.engine.lanes) <= {"p/mx.d.test", "q/mx.d.test", "both/mx.d.test"}
    world.until(world.over)
    assert world.clients["127.0.0.2"] + world.clients["127.0.0.3"] == world.connections
    assert world.most_open <= 2
    assert len(world.taken) == 30
    world.until(lambda: not world.engine.connections)
    assert (world.engine.lanes, world.engine.paths) == ({}, {})


def a_lost_source_is_made_up_for() -> None:
    """The address of one source is not on this machine: an alarm, once; all mail goes from the other, none is deferred
    or bounced. A pool that has no other source waits with that reason, and goes when the address is back."""
    pathkeeping.LOOK_S = 0.1
    world = Sited(sources=three(gone=Source(ipv4=ABSENT)), pools={"default": {"gone": 9, "a": 1}, "lost": {"gone": 1}})
    for _ in range(5):
        world.make()
        world.make_for("lost")
    world.until(lambda: len(world.taken) == 5)
    assert dict(world.clients) == {"127.0.0.2": world.connections}
    state, reason, *_ = standing(world.engine, 0, "d.test/lost", 1)
    assert state == "suspended", (state, reason)
    assert f"this machine does not have the address {ABSENT}" in reason
    gevent.sleep(0.3)
    assert world.shelf.told("alarm") == 1
    assert world.shelf.told("deferred") == world.shelf.told("suspended") == 0
    sources.is_ours = lambda family, address: True
    world.engine.sources.all["gone"].ipv4 = "127.0.0.9"
    world.until(world.over)
    assert world.messages["127.0.0.9"] == 5


def a_source_that_vanishes_while_it_runs() -> None:
    """Noticed at the bind: no attempt is counted, the site is not suspended, the mail goes by the other source."""
    world = Sited(sources=three(), shaping=quick(messages_per_connection=1, connections=1))
    world.make()
    world.until(world.over)
    gone = world.engine.sources.all["b"]
    gone.ipv4 = ABSENT
    for _ in range(6):
        world.make()
    world.until(world.over)
    assert (world.shelf.told("alarm"), world.shelf.told("suspended"), world.shelf.told("deferred")) == (1, 0, 0)
    assert gone.lost
    assert len(world.taken) == 7


def a_suspended_path_leaves_its_mail_to_the_others() -> None:
    """One source is refused: its path pauses, the mail goes by the other one. When both are refused the queues leave
    memory until the first may be tried again."""
    world = Sited(sources=three(), pause=60)
    for _ in range(3):
        world.make()
    world.until(world.over)
    path = world.engine.ways._named("a>mx.d.test", world.engine.sources.all["a"], "d.test")
    path.reason = "554 blocked"
    world.engine.keeper.pause(path)
    before = world.clients["127.0.0.2"]
    for _ in range(10):
        world.make()
    world.until(world.over)
    assert world.clients["127.0.0.2"] == before
    other = world.engine.ways._named("b>mx.d.test", world.engine.sources.all["b"], "d.test")
    other.reason = "554 blocked, too"
    world.engine.keeper.pause(other)
    world.make()
    assert world.engine.scheduler.deliveries == 0
    state, reason, *_ = standing(world.engine, 0, "d.test", 1)
    assert state == "suspended"
    assert "a>mx.d.test is suspended" in reason, reason
    assert "b>mx.d.test is suspended" in reason, reason


def many_queues_are_parked_in_pieces() -> None:
    """A site with many queues stands still: no turn of the loop parks more than some of them, and what is left gets no
    message meanwhile. When it may go on before all are parked, those left go at once."""
    pathkeeping.PARKED_AT_ONCE = 20
    world = Sited(shaping=quick(connections=1), pause=60)
    world.slow_s = 0.2
    for number in range(100):
        world.make_for(tenant=f"t{number}")
    world.until(lambda: world.taken)
    [path], [lane] = world.engine.paths.values(), world.engine.lanes.values()
    had, taken = len(lane.turns), len(world.taken)
    path.reason = "554 blocked"
    world.engine.keeper.pause(path)
    assert had - len(lane.turns) == 20
    world.engine.keeper.clear(path)  # once more makes no second line of pieces
    gevent.sleep(0)
    assert had - len(lane.turns) <= 3 * 20
    world.until(lambda: not lane.turns)
    assert len(world.taken) <= taken + 2  # what was on the connection
    world.slow_s = 0
    path.suspended_until_us = 0
    world.make_for(tenant="fresh")
    for number in range(100, 200):
        world.make_for(tenant=f"t{number}")
    [path], [lane] = world.engine.paths.values(), world.engine.lanes.values()  # others, if the connection has ended
    before = len(lane.turns)
    world.engine.keeper.pause(path)
    path.suspended_until_us = 0
    assert before - len(lane.turns) == 20
    world.until(lambda: not lane.turns and len(world.taken) >= 100 - 20)
    world.engine.scheduler.repark(lambda name, until_us: world.clock_us())
    world.until(world.over)
    assert len(world.taken) == 201


def a_hold_over_many_sites_is_one_look() -> None:
    """A provider of many sites is suspended: no turn of the loop empties more than some of them, none of them gets
    mail; and when that ends all of it goes, by one look at what is parked and not one for each site."""
    world = Sited(shaping=quick(connections=1))
    names = [f"d{number}.test" for number in range(60)]
    world.providers = dict.fromkeys(names, "big")
    for name in names:
        world.make_for(domain=name)
    world.until(world.over)
    assert len(world.taken) == 60
    world.slow_s = 0.3
    for name in 2 * names:
        world.make_for(domain=name)
    cleared, looks = [], []
    keeper, scheduler = world.engine.keeper, world.engine.scheduler
    clear, repark = keeper.clear, scheduler.repark
    keeper.clear = lambda path: (cleared.append(path.name), clear(path))
    scheduler.repark = lambda until_us: (looks.append(1), repark(until_us))
    world.until(lambda: len(world.engine.connections) == 60)
    world.engine.holds.suspend("provider:big", 60, "operator", "a test")
    assert 0 < len(cleared) <= pathkeeping.CLEARED_AT_ONCE
    world.until(lambda: len(scheduler.parked()) == 60)
    world.until(lambda: not world.engine.connections)
    assert len(world.taken) <= 120  # those that were under way at most
    assert not looks
    world.slow_s = 0.0
    world.engine.holds.lift("provider:big", "operator")
    assert len(looks) == 1
    world.until(world.over)
    assert len(world.taken) == 180


def transactional_mail_waits_for_one_message_of_a_slow_receiver() -> None:
    """Where content is answered late none is sent ahead: what may overtake waits for the one under way alone. Where it
    is not, the next one is on the connection already; and so it is when the receiver is fast again."""
    had = 4  # messages, of which the last one is under way when a transactional one is given in

    class Thinking(Sited):
        """By a clock that goes on while it thinks, and else does not: a busy machine makes no receiver slow."""

        thinks_s = now_s = 0.0
        path: Any

        def took(self, sock: Any, sender: bytes) -> None:
            super().took(sock, sender)
            if len(self.taken) == had:
                [self.path] = self.engine.paths.values()
                assert self.path.prompt == (self.thinks_s < dispatch.SLOW_S)
                self.make_for(priority="transactional", sender="now@x.test")
            if b"now@" in sender:
                self.thinks_s = 0.0
            gevent.sleep(0.02)
            self.now_s += self.thinks_s

    def overtaken_by(thinks_s: float) -> int:
        """How many messages come before a transactional one that is given in while another is under way."""
        world = Thinking(shaping=quick(connections=1))
        began_s = world.engine.monotonic()
        world.engine.monotonic = lambda: began_s + world.now_s
        world.answers[b"EHLO"] = b"250-mx.d.test\r\n250 PIPELINING"
        world.thinks_s = thinks_s
        for _ in range(20):
            world.make_for()
        world.until(lambda: any(b"now@" in sender for sender in world.taken) and world.path.prompt)
        world.until(world.over)
        return next(place for place, sender in enumerate(world.taken) if b"now@" in sender) - had

    assert overtaken_by(dispatch.SLOW_S * 1.1) == 0
    assert overtaken_by(dispatch.SLOW_S / 10) == 1


def a_retry_goes_by_the_same_source() -> None:
    """Greylisting: what was deferred comes back from the address that it came from, though the other one is on turn."""
    class Grey(Sited):
        def serve(self, sock: Any, peer: object) -> None:
            client = sock.getpeername()[0]
            file = sock.makefile("rb")
            sock.sendall(b"220 mx.d.test\r\n")
            sender = b""
            for line in file:
                verb = line[:4].upper()
                if verb == b"MAIL":
                    sender = line
                if verb == b"RCPT":
                    known = self.greylisted.setdefault(sender, client)
                    self.clients[client] += 1
                    if known != client or self.refusals[sender] < 1:
                        self.refusals[sender] += 1
                        sock.sendall(b"450 4.7.1 greylisted\r\n")
                        continue
                if verb == b"DATA":
                    sock.sendall(b"354 go\r\n")
                    while file.readline() != b".\r\n":
                        pass
                    self.taken.append(sender)
                sock.sendall(b"250 ok\r\n")

    Grey.refusals = Counter()
    world = Grey(sources=three(), shaping=quick(connections=4))
    for number in range(20):
        world.make(f"s{number}@x.test")
    world.until(lambda: world.shelf.told("deferred") == 20)
    while world.shelf.stored:
        world.engine.scheduler._wake(0, "d.test", clock_us())
        gevent.sleep(0.02)
    assert world.shelf.told("deferred") == 20, Counter(world.refusals.values())
    assert len(set(world.greylisted.values())) == 2


def a_pool_that_is_gone() -> None:
    """Mail for a pool that the configuration does not have waits with that reason, is never bounced, and goes as soon
    as a reload brings the pool."""
    world = Sited(sources=three())
    world.make_for("old")
    world.until(lambda: standing(world.engine, 0, "d.test/old", 1)[0] == "suspended")
    assert "the configuration has no pool old" in standing(world.engine, 0, "d.test/old", 1)[1]
    assert world.engine.scheduler.deliveries == 0
    config = deepcopy(world.config)
    object.__setattr__(config, "pools", {"old": {"b": 1}})
    world.engine.configure(config, world)
    world.until(world.over)
    assert world.messages["127.0.0.3"] == 1
    assert world.shelf.told("deferred") == 0


def a_domain_without_a_way_by_our_configuration() -> None:
    """An address for a name that we do not connect to, or relays that are we ourselves: nothing but a reload helps.
    Such mail waits with that reason, and goes as soon as a reload brings a way."""
    world = Sited()
    route = world.route
    world.route = lambda domain: RouteFailure(False, 451, "4.4.4", "it is not connected to", FOREVER)
    world.make(domain="[127.0.0.1]")
    world.until(lambda: world.engine.scheduler.parked() == ["[127.0.0.1]"])
    assert "it is not connected to" in standing(world.engine, 0, "[127.0.0.1]", 1)[1]
    [told] = [event for event in world.shelf.events if event["event"] == "suspended"]
    assert told["text"] == "it is not connected to"
    world.route = route
    world.engine.configure(world.config)
    world.until(world.drained)
    assert world.shelf.told("delivered") == 1


def a_pool_that_is_gone_may_fall_back() -> None:
    """With `unknown_pool: default` such mail takes the default pool."""
    world = Sited(sources=three(), pools={"default": {"a": 1}},
                  delivery=DeliverySettings(unknown_pool="default"))
    world.make_for("old")
    world.until(world.over)
    assert world.messages["127.0.0.2"] == 1


def a_pool_that_changes_moves_waiting_mail() -> None:
    """The pool of a label is looked up at every attempt: connections of sources that are no longer in it end."""
    class Halting(Sited):
        """It takes one message, and then waits before it answers."""

        def took(self, sock: Any, sender: bytes) -> None:
            super().took(sock, sender)
            if len(self.taken) == 1:
                self.answering.clear()

    world = Halting(sources=three(), pools={"p": {"a": 1}}, shaping=quick(connections=1))
    for _ in range(6):
        world.make_for("p")
    world.until(lambda: world.taken)
    config = deepcopy(world.config)
    object.__setattr__(config, "pools", {"p": {"b": 1}})
    world.engine.configure(config, world)
    world.answering.set()
    world.until(world.over)
    assert world.messages["127.0.0.3"] >= 3, world.messages
    assert world.messages.total() == 6


def leases_are_of_the_path() -> None:
    """A limit of one connection holds for each source by itself, and the total over all."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(sources=three(), limits=limits, shaping=quick(connections=1),
                      delivery=DeliverySettings(connections=2))
        gevent.spawn(listen, world, limits)
        world.slow_s = 0.01
        for _ in range(30):
            world.make()
        world.until(world.over)
        assert world.most_open == 2
        assert set(world.clients) == {"127.0.0.2", "127.0.0.3"}


def mail_goes_through_a_proxy() -> None:
    """SOCKS5: the proxy connects on; a proxy that is down is no fault of the site, its source waits."""
    asked: list[bytes] = []

    def socks(sock: Any, peer: object) -> None:
        sock.recv(3)
        sock.sendall(b"\x05\x00")
        asked.append(sock.recv(100))
        onward = gevent.socket.create_connection(("127.0.0.1", world.port), source_address=("127.0.0.8", 0))
        sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
        gevent.spawn(pump, onward, sock)
        pump(sock, onward)

    def pump(one: Any, other: Any) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(1)
        except OSError:
            pass  # the other direction has closed it

    proxy = StreamServer(("127.0.0.1", 0), socks)
    proxy.start()
    address = parse_proxy(f"socks5://127.0.0.1:{proxy.server_port}")
    pathkeeping.LOOK_S = 0.1
    world = Sited(sources={"far": Source(proxy=address)})
    world.make()
    world.until(world.over)
    assert dict(world.clients) == {"127.0.0.8": 1}
    assert asked[0][:8] == b"\x05\x01\x00\x01\x7f\x00\x00\x01"
    proxy.stop()
    world.until(lambda: not world.engine.connections)
    world.make()
    world.until(lambda: world.shelf.told("alarm"))
    assert world.shelf.told("suspended") == 0
    assert "proxy" in standing(world.engine, 0, "d.test", 1)[1]
    StreamServer(("127.0.0.1", address.port), socks).start()
    world.until(world.over)
    assert world.messages["127.0.0.8"] == 2


def a_path_with_a_rate() -> None:
    """Messages are spaced evenly, by one timer: nothing is opened or woken while none may go; the wait has a name."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, shaping=shaping(idle=Duration(5), message_rate=(parse_rate("4/s"),)))
        gevent.spawn(listen, world, limits)
        world.make()
        world.until(lambda: len(world.taken) == 1 and any(one.idle for one in world.engine.connections))
        asked, granted = Counter[str](), []
        real, reserve = world.engine.dispatch.next_job, limits.reserve
        world.engine.dispatch.next_job = lambda one: asked.update(["job"]) or real(one)

        def noted(buckets: Any, count: int = 1, urgent: bool = False) -> float:
            at_s = reserve(buckets, count, urgent)
            if not at_s:
                granted.append(time.monotonic())
            return at_s

        limits.reserve = noted
        for _ in range(8):
            world.make()
            gevent.sleep(0.001)
        world.until(lambda: "rate of mx.d.test (4/s) is used up" in standing(world.engine, 0, "d.test", 1)[1])
        world.until(world.drained)
        assert len(granted) == 8
        assert granted[-1] - granted[0] >= 7 / 4
        # Each time may find its connection busy, and open one more; but nobody asks in between.
        assert asked.total() <= 8 * 8, asked


def a_reload_takes_no_place_in_line() -> None:
    """Whoever waits for a rate waits on through reloads, at the same place and for one timer; nothing is handed back,
    and the message goes when its time has come."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, shaping=shaping(idle=Duration(5), message_rate=(parse_rate("1/s"),)))
        gevent.spawn(listen, world, limits)
        back: list[object] = []
        limits.hand_back = lambda buckets, **since: back.append(buckets)
        for _ in range(2):
            world.make()
        path: Any = None
        world.until(lambda: len(world.taken) == 1 and next(iter(world.engine.paths.values())).not_before_s)
        path = next(iter(world.engine.paths.values()))
        place = path.not_before_s
        for _ in range(3):
            world.engine.configure(deepcopy(world.config), world)
            world.until(lambda: path.has_work)
            assert limits.reserve(path.message_rates) == place
        assert next(iter(world.engine.paths.values())) is path
        assert path.not_before_s == place
        world.until(world.drained)
        assert not back


def a_rate_of_connections() -> None:
    """New connections are spaced; those that are open carry mail meanwhile."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(limits=limits, shaping=quick(messages_per_connection=1, connection_rate=(parse_rate("10/s"),)))
        gevent.spawn(listen, world, limits)
        begun = time.monotonic()
        for _ in range(6):
            world.make()
        world.until(world.drained)
        assert world.connections == 6
        assert time.monotonic() - begun >= 0.5


def a_rate_over_a_provider() -> None:
    """It holds over all its sites together; another provider's mail does not wait for it."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        rules = ShapingRules(providers={"big": ProviderLayer.of(total_message_rate=(parse_rate("1/h"),))})
        world = Sited(limits=limits, shaping=rules)
        world.providers = {f"b{number}.test": "big" for number in range(4)}
        gevent.spawn(listen, world, limits)
        for number in range(4):
            for _ in range(4):
                world.make_for(domain=f"b{number}.test")
                world.make_for(domain=f"o{number}.test")

        def delivered(kind: str) -> int:
            return sum(event["event"] == "delivered" and event["recipients"][0].startswith(f"u@{kind}")
                       for event in world.shelf.events)

        world.until(lambda: delivered("o") == 16 and delivered("b") == 1)
        assert sum(one.queue.startswith("b") for one in world.shelf.stored.values()) == 15
        config = deepcopy(world.config)
        object.__setattr__(config, "shaping", ShapingRules())
        world.engine.configure(config, world)
        world.until(world.drained)


def transactional_mail_overtakes_in_a_rate_that_sites_share() -> None:
    """A hundred sites wait with bulk mail for the rate of their provider: a transactional message to one more, by
    another worker, and one to the last of them go next, in two slots at most; the place of the last one is kept."""
    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        own = quick(message_rate=(parse_rate("20/s"),)).default  # with one of its own each site has a place
        rules = ShapingRules(default=own,
                             providers={"big": ProviderLayer.of(total_message_rate=(parse_rate("2/s"),))})
        worlds: list[Sited] = []
        waits: list[float] = []  # what transactional mail is told, in seconds from then

        def asked(reserve: Any, buckets: Any, count: int = 1, urgent: bool = False) -> float:
            at_s: float = reserve(buckets, count, urgent)
            if urgent:
                waits.append(at_s - time.monotonic())
            return at_s

        for number in range(2):
            limits = Limits(run, number)
            limits.reserve = partial(asked, limits.reserve)
            world = Sited(shaping=rules, limits=limits)
            world.providers = dict.fromkeys([*(f"b{one}.test" for one in range(100)), "new.test"], "big")
            join(worlds, world, limits)
        host, other = worlds
        for one in range(100):
            host.make_for(domain=f"b{one}.test", priority="bulk")
        host.until(lambda: sum(path.not_before_s > 0 for path in host.engine.paths.values()) >= 95)
        assert max(path.not_before_s for path in host.engine.paths.values()) > time.monotonic() + 40
        last = max(host.engine.paths.values(), key=lambda path: path.not_before_s)
        domain, place = last.name.removeprefix("mx."), last.not_before_s
        reason = standing(host.engine, 0, f"{domain}^bulk", 1)[1]
        assert "later if transactional mail to other sites comes first" in reason, reason
        for world, site in ((other, "new.test"), (host, domain)):
            before = len(host.taken)
            world.make_for(domain=site, priority="transactional", sender="urgent@x.test")
            host.until(lambda before=before: any(b"urgent" in sender for sender in host.taken[before:]))
            assert waits
            assert max(waits) <= 1.0, waits  # the next of two slots of a second
            waits.clear()
        host.until(lambda: last.not_before_s > time.monotonic())
        assert last.not_before_s == place
        assert not other.engine.scheduler.deliveries


def transactional_mail_overtakes_what_is_left_to_a_source() -> None:
    """Deferred mail that other sources leave to the one it came from before is no faster than its priority."""
    class Halting(Sited):
        """It answers no more when it has taken what is urgent."""

        def took(self, sock: Any, sender: bytes) -> None:
            super().took(sock, sender)
            if b"urgent" in sender:
                self.answering.clear()

    world = Halting(sources=three(), pools={"both": {"a": 1, "b": 1}, "one": {"a": 1}}, shaping=quick(connections=1))
    world.slow_s = 0.03
    for _ in range(60):
        one = world.make_for(pool="both", priority="bulk", sender="bulk@x.test")
        one.source = "a"
        world.shelf.stored[one.key].source = "a"
    path = world.engine.paths.get
    world.until(lambda: (found := path("a>mx.d.test")) is not None and len(found.claims) > 20)
    before = world.messages["127.0.0.2"]
    world.make_for(pool="one", priority="transactional", sender="urgent@x.test")
    world.until(lambda: any(b"urgent" in sender for sender in world.taken))
    assert world.messages["127.0.0.2"] - before <= 4, (before, world.messages)
    assert path("a>mx.d.test").claims
    world.answering.set()
    world.until(world.drained)
    assert world.messages == {"127.0.0.2": 61}


if __name__ == "__main__":
    globals()[sys.argv[1]]()
