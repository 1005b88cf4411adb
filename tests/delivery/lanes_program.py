"""Runs one scenario of sources, pools, tenants and limits with a real engine, in a gevent process of its own.

    python -m tests.delivery.lanes_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.world import CONTENT, World, clock_us, listen, shaping  # noqa: I001 - patches first

import subprocess
import sys
import tempfile
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from gevent.server import StreamServer

from mta.config.schema import Delivery as DeliverySettings
from mta.config.schema import ShapingRules, Source, Tenant
from mta.config.shaping import Adaptive, DomainLayer, ProviderLayer
from mta.config.units import Duration, parse_proxy, parse_rate
from mta.delivery import connecting, dispatch, limit_table, pathkeeping, sources
from mta.delivery.explain import of_queue, standing
from mta.delivery.limits import Limits
from mta.queue.records import Delivery, Message, Recipient, queue_name

ABSENT = "192.0.2.77"  # no machine has it (RFC 5737)


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
    with tempfile.TemporaryDirectory() as run:
        env = limit_table.open_table(Path(run, "limits"))
        limit_table.open_table = lambda directory: env  # one may be open in a process
        rules = ShapingRules(default=quick(messages_per_connection=1, connections=100).default,
                             domains={"d.test": DomainLayer.of(total_connections=7)})
        worlds: list[Sited] = []
        for number in range(2):
            limits = Limits(run, number)
            world = Sited(sources=three(c=Source(ipv4="127.0.0.4")), pools={"default": {"a": 1, "b": 2, "c": 4}},
                          shaping=rules, limits=limits)
            join(worlds, world, limits)
        host = worlds[0]
        host.slow_s = 0.05
        for _ in range(140):
            for world in worlds:
                world.make()
        host.until(lambda: host.clients.total() >= 203)
        counts = [host.clients[f"127.0.0.{number}"] for number in (2, 3, 4)]
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
    state, reason, _, _ = standing(world.engine, 0, "d.test/lost", 1)
    assert state == "suspended", (state, reason)
    assert f"this machine does not have the address {ABSENT}" in reason
    gevent.sleep(0.3)
    assert world.shelf.told("alarm") == 1
    assert world.shelf.told("deferred") == world.shelf.told("suspended") == 0
    sources.is_ours = lambda family, address: True  # type: ignore
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
    state, reason, _, _ = standing(world.engine, 0, "d.test", 1)
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
    [lane] = world.engine.lanes.values()
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
    keeper.clear = lambda path: (cleared.append(path.name), clear(path))  # type: ignore
    scheduler.repark = lambda until_us: (looks.append(1), repark(until_us))  # type: ignore
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
    class Thinking(Sited):
        """By a clock that goes on while it thinks, and else does not: a busy machine makes no receiver slow."""

        thinks_s = now_s = 0.0

        def took(self, sock: Any, sender: bytes) -> None:
            super().took(sock, sender)
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
        world.until(lambda: len(world.taken) > 3)
        had = len(world.taken)
        world.make_for(priority="transactional", sender="now@x.test")
        [path] = world.engine.paths.values()
        assert path.prompt == (thinks_s < dispatch.SLOW_S)
        world.until(lambda: any(b"now@" in sender for sender in world.taken))
        world.thinks_s = 0.0
        world.until(lambda: path.prompt)
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

    Grey.refusals = Counter()  # type: ignore[attr-defined]
    world = Grey(sources=three(), shaping=quick(connections=4))
    for number in range(20):
        world.make(f"s{number}@x.test")
    world.until(lambda: world.shelf.told("deferred") == 20)
    while world.shelf.stored:
        world.engine.scheduler._wake(0, "d.test", clock_us())
        gevent.sleep(0.02)
    assert world.shelf.told("deferred") == 20, Counter(world.refusals.values())  # type: ignore[attr-defined]
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
    world.engine.configure(config, world)  # type: ignore
    world.until(world.over)
    assert world.messages["127.0.0.3"] == 1
    assert world.shelf.told("deferred") == 0


def a_pool_that_is_gone_may_fall_back() -> None:
    """With `unknown_pool: default` such mail takes the default pool."""
    world = Sited(sources=three(), pools={"default": {"a": 1}},
                  delivery=DeliverySettings(unknown_pool="default"))
    world.make_for("old")
    world.until(world.over)
    assert world.messages["127.0.0.2"] == 1


def a_pool_that_changes_moves_waiting_mail() -> None:
    """The pool of a label is looked up at every attempt: connections of sources that are no longer in it end."""
    world = Sited(sources=three(), pools={"p": {"a": 1}}, shaping=quick(connections=1))
    world.slow_s = 0.05
    for _ in range(6):
        world.make_for("p")
    world.until(lambda: len(world.taken) == 1)
    config = deepcopy(world.config)
    object.__setattr__(config, "pools", {"p": {"b": 1}})
    world.engine.configure(config, world)  # type: ignore
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
        world.engine.dispatch.next_job = lambda one: asked.update(["job"]) or real(one)  # type: ignore

        def noted(buckets: Any, count: int = 1) -> float:
            at_s = reserve(buckets, count)
            if not at_s:
                granted.append(time.monotonic())
            return at_s

        limits.reserve = noted  # type: ignore
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
        limits.hand_back = lambda buckets, count=1: back.append(buckets)  # type: ignore
        for _ in range(2):
            world.make()
        path: Any = None
        world.until(lambda: len(world.taken) == 1 and next(iter(world.engine.paths.values())).not_before_s)
        path = next(iter(world.engine.paths.values()))
        place = path.not_before_s
        for _ in range(3):
            world.engine.configure(deepcopy(world.config), world)  # type: ignore
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
        world.engine.configure(config, world)  # type: ignore
        world.until(world.drained)


def transactional_mail_overtakes_what_is_left_to_a_source() -> None:
    """Deferred mail that other sources leave to the one it came from before is no faster than its priority."""
    world = Sited(sources=three(), pools={"both": {"a": 1, "b": 1}, "one": {"a": 1}}, shaping=quick(connections=1))
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
    assert path("a>mx.d.test").claims  # type: ignore[union-attr]
    world.until(world.drained)
    assert world.messages == {"127.0.0.2": 61}


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
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"slow": Tenant(message_rate=(parse_rate("1/h"),))}, limits=limits,
                      shaping=shaping(connections=1, idle=Duration(3600)))
        gevent.spawn(listen, world, limits)
        for _ in range(4):
            world.make_for(tenant="slow", sender="slow@x.test")
        for _ in range(20):
            world.make_for(tenant="quick", sender="quick@x.test")
        world.until(lambda: sum(b"quick" in sender for sender in world.taken) == 20)
        world.until(lambda: "rate of tenant slow (1/h) is used up" in standing(world.engine, 0, "slow@d.test", 1)[1])
        assert sum(b"slow" in sender for sender in world.taken) == 1
        config = deepcopy(world.config)
        object.__setattr__(config, "tenants", {})
        world.engine.configure(config, world)  # type: ignore
        world.until(world.drained)
        assert world.connections == 1


def a_tenant_with_a_bound_on_messages_in_flight() -> None:
    """At most two at once over all connections and sites; each end lets the next one go."""
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"small": Tenant(concurrency=2)}, limits=limits)
        gevent.spawn(listen, world, limits)
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
            limits.acquire = lambda leases, acquire=acquire: asked.append(leases) or acquire(leases)  # type: ignore
            world = Sited(tenants={"small": tenant}, limits=limits, shaping=shaping(idle=Duration(60)))
            join(worlds, world, limits)
        host = worlds[0]
        host.slow_s = 0.02
        for number in range(180):
            for which, world in enumerate(worlds):
                world.make_for(tenant="small", domain=f"d{number % 3}.test", sender=f"w{which}d{number % 3}@x.test")
        kinds: set[str] = set()

        def enough() -> bool:
            kinds.update(found.kind for world in worlds if (found := world.engine.pacing.why("small")) is not None)
            return len(host.taken) >= 60

        host.until(enough)
        assert kinds == {kind}
        counts = Counter(host.taken)
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
        world.gates, world.at_once = {}, 0  # type: ignore[attr-defined]
        holds, pacing = world.engine.holds, world.engine.pacing
        gevent.spawn(listen, world, limits)

        def limit(most: int) -> None:
            holds.limit("tenant:small", "connections", most, 3600, "operator", "a test")

        def under_way(count: int, held: int) -> None:
            world.until(lambda: len(world.gates) == count)
            assert sum(limits.holders("tenant:small").values()) == held, limits.holders("tenant:small")

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
    with tempfile.TemporaryDirectory() as run:
        limits = Limits(run, 0)
        world = Sited(tenants={"small": Tenant(concurrency=1)}, limits=limits)
        gevent.spawn(listen, world, limits)
        world.slow_s = 1.0
        asked: list[object] = []
        acquire = limits.acquire
        limits.acquire = lambda leases: asked.append(leases) or acquire(leases)  # type: ignore
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
        world.shelf.count_of_tenants = lambda tenants, done: asked.append(done)  # type: ignore
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
        world.shelf.count_of_tenants = lambda tenants, done: asked.append(done)  # type: ignore
        limits.stock("queue:t", None)
        pacing.begin()
        waiting = gevent.spawn(pacing.await_counts, 2)
        gevent.sleep(0.05)
        asked.pop()({"t": 4})
        gevent.sleep(0.05)
        assert not waiting.dead
        subprocess.run([sys.executable, "-c", COUNTS, run], check=True)
        waiting.join(10)
        assert waiting.dead
        refused = pacing.admit("t", 2)
        assert refused is not None
        assert refused.enhanced == "4.2.2"
        assert pacing.admit("t", 1) is None
        Sited(limits=limits).engine.pacing.await_counts(2)


COUNTS = """
import sys
from mta.delivery.limits import Limits
limits = Limits(sys.argv[1], 1)
limits.stock("queue:t", 5)
limits.close()
"""

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
            state, reason, _, _ = standing(world.engine, 0, queue, 1)
            assert state == "suspended", (name, state, reason)
            assert f"no more of {name}" in reason, reason
            world.until(lambda: not world.engine.scheduler.deliveries)
            elsewhere(f"lift {name}")
            world.until(world.over)
            assert len(world.taken) == taken + 2

        elsewhere("suspend domain:d.test")
        again = Sited(limits=limits)
        again.make()
        gevent.sleep(0.05)
        assert not again.taken
        assert standing(again.engine, 0, "d.test", 1)[0] == "suspended"


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
        world.until(lambda: "mx.d.test is held to 0.001/s" in standing(world.engine, 0, "d.test", 1)[1])
        assert len(world.taken) <= 6 + 1
        holds.limit("mx.d.test", "rate", 0.001, 0.2, "rule slow", "421 slow down")
        world.until(world.over)


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
    assert connecting
    globals()[sys.argv[1]]()
