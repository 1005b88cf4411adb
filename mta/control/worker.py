"""One worker process: everything a message meets, from the listening socket to the remote host.

Started by the supervisor with `python -m mta.control.worker`. It owns one or more shards: new mail goes into the one
that bears its number, the others (left over by an earlier run with more workers) are only emptied.
"""

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402
import logging  # noqa: E402
import resource  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.select  # noqa: E402

from mta.access.users import UsersError  # noqa: E402
from mta.config.schema import Config  # noqa: E402
from mta.control.answers import Answers  # noqa: E402
from mta.control.child import Child, run_child  # noqa: E402
from mta.control.descriptors import Descriptors  # noqa: E402
from mta.control.exits import CANNOT_CREATE, CONFIG, DATA, TEMPORARY, StartError  # noqa: E402
from mta.control.hubstore import HubStore  # noqa: E402
from mta.control.lag import LoopLag  # noqa: E402
from mta.control.orders import orders_file, read_orders  # noqa: E402
from mta.control.protocol import worker_socket  # noqa: E402
from mta.control.service import RequestService  # noqa: E402
from mta.control.thrift import Thrift  # noqa: E402
from mta.delivery import deadlines  # noqa: E402
from mta.delivery.clock import ClockWatch  # noqa: E402
from mta.delivery.dns import Resolver  # noqa: E402
from mta.delivery.engine import Engine  # noqa: E402
from mta.delivery.limits import Limits  # noqa: E402
from mta.delivery.openings import UNBOUNDED  # noqa: E402
from mta.delivery.routing import Router  # noqa: E402
from mta.delivery.settle import Settler  # noqa: E402
from mta.inject.balance import Balance  # noqa: E402
from mta.inject.certificates import CertificateError  # noqa: E402
from mta.inject.claims import DirectoryError  # noqa: E402
from mta.inject.incidents import Incidents  # noqa: E402
from mta.inject.intake import Accepted, Intake  # noqa: E402
from mta.inject.listener import SmtpListener  # noqa: E402
from mta.inject.logins import Logins, Watch  # noqa: E402
from mta.inject.occupancy import Occupancy  # noqa: E402
from mta.inject.pickup_service import PickupService  # noqa: E402
from mta.inject.usage import Usage  # noqa: E402
from mta.loop.threads import in_thread  # noqa: E402
from mta.queue.checkpointing import CHECKPOINT_ENTRIES  # noqa: E402
from mta.queue.ids import IdSource, shard_of  # noqa: E402
from mta.queue.orders import Orders  # noqa: E402
from mta.queue.records import Message  # noqa: E402
from mta.queue.shortage import Spell  # noqa: E402
from mta.queue.store import BodyUnreadable, Store, StoreError, StoreLocked, StoreVersion, Transaction  # noqa: E402
from mta.smtp.reply import Reply  # noqa: E402

# py-lmdb gives the GIL back and forth at every put; with Python's 5 ms a busy hub would make each of them wait so long.
SWITCH_INTERVAL_S = 0.0005

# Deliveries of one message that go to the scheduler in memory, which takes some 15 ms. Those of larger ones come by the
# checkpoint that so many bring about at once.
AT_ONCE = CHECKPOINT_ENTRIES

NUDGE_CARE_S = 1.0

log = logging.getLogger(__name__)


def clock_us() -> int:
    """The wall clock, in microseconds since the epoch."""
    return time.time_ns() // 1000


class Worker:
    """The parts of a worker and how they are joined."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.number = child.setup.number
        self.started_s = time.monotonic()
        config = self.config = child.config
        self.stores = self._open_stores(config)
        self.ids = {shard: IdSource(shard, store.last_id, clock_us) for shard, store in self.stores.items()}
        self.store = self.stores[self.number]
        self.limits = Limits(config.run, self.number)
        watch = ClockWatch(clock_us, lambda: {shard: ids.last for shard, ids in self.ids.items()})
        self.settler = Settler(config, lambda shard: self.ids[shard].next(), self.original,
                               clock_us, watch)
        self.descriptors = Descriptors()
        self.resolver = Resolver(config.dns, self.descriptors.shares(config).lookups)
        router = Router(config, self.resolver)
        self.settler.provider_of = router.provider_of
        self.engine = Engine(config, dict(self.stores), router, self.limits, self.settler, self.read_body, clock_us)
        self.intake = Intake(config, self.ids[self.number].next, clock_us, self.commit, self.engine.pacing.admit,
                             self.engine.controls.direct)
        self.balance = Balance(config.run, self.number, child.setup.workers)
        self.occupancy = Occupancy(self.store.coming, self.balance)
        self._shut = Spell(log, "new mail is refused", "new mail is taken")
        self.incidents = Incidents(lambda event: self.store.submit(Transaction(events=[event])), clock_us)
        self.listeners = self._listeners()
        self.watch = Watch(self.logins.refresh, self.incidents.look, *(listener.refresh for listener in self.listeners))
        self.pickups = [self._pickup(one.directory, shard) for one in config.pickup for shard in self.stores]
        self.doors: list[SmtpListener | PickupService] = [*self.listeners, *self.pickups]
        self._share_descriptors()
        self.lag = LoopLag()
        self.thrift = Thrift()
        self.service = RequestService(worker_socket(config.run, self.number), Answers(self).answer)
        self._listening: gevent.Greenlet[Any] | None = None
        self._statm = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115 - also when descriptors are short

    def _open_stores(self, config: Config) -> dict[int, HubStore]:
        stores = {}
        for shard in self.child.setup.shards:
            directory = Path(config.spool, "shards", f"{shard:03d}")
            try:
                directory.mkdir(parents=True, exist_ok=True)
                stores[shard] = HubStore.attach(directory, config, shard, clock_us)
            except StoreLocked as error:
                raise StartError(TEMPORARY, str(error)) from None
            except StoreVersion as error:
                raise StartError(DATA, str(error)) from None
            except (StoreError, OSError) as error:
                raise StartError(CANNOT_CREATE, str(error)) from None
        return stores

    def _listeners(self) -> list[SmtpListener]:
        config, usage, again = self.config, Usage(self.limits.count), self.child.setup.again
        try:
            self.logins = Logins(config, self.limits.numbers, self.incidents, lenient=again)
            return [
                SmtpListener(sock, config, config.listeners[index], self.intake.submit, self.intake_closed,
                             self.occupancy, self.logins, usage, lenient=again)
                for index, sock in self.child.sockets()
            ]
        except (UsersError, CertificateError) as error:
            raise StartError(CONFIG, str(error)) from None

    def _pickup(self, directory: str, shard: int) -> PickupService:
        """New files go into our own shard; for a shard that is only emptied, what was begun is finished."""
        intake = self.intake if shard == self.number else Intake(
            self.config, self.ids[shard].next, clock_us, direct=self.engine.controls.direct)
        return PickupService(directory, shard, self.config, intake, self.stores[shard],
                             lambda accepted: self._from_files(shard, accepted), takes_new=shard == self.number)

    # -- intake --------------------------------------------------------------------------------------------------

    def intake_closed(self) -> Reply | None:
        """Why no new mail is taken, as the answer to MAIL; None when it is."""
        reason = self.store.room()
        if reason:
            self._shut.failed(reason, time.monotonic())
            return Reply(452, "4.3.1", (f"Insufficient system storage: {reason}",))
        if self._shut.lasts:
            self._shut.worked(time.monotonic())
        return None

    def commit(self, accepted: Accepted, done: Any) -> None:
        """Intake: make a message durable, then give it to the scheduler. Hot path."""

        def durable(error: StoreError | None) -> None:
            try:
                done(error)  # first of all: the client waits
            finally:
                if error is None:
                    self._schedule(self.number, (accepted,))
                elif accepted.message.tenant:
                    self.engine.pacing.not_stored(accepted.message.tenant, len(accepted.deliveries))

        message = accepted.message
        marks = () if message.wishes is None else deadlines.mark(message)
        self.store.submit(Transaction([(message, accepted.deliveries)], events=[accepted.event], marks=marks), durable)

    def _from_files(self, shard: int, accepted: Sequence[Accepted]) -> None:
        """These messages of a spool directory are durable."""
        for one in accepted:
            if one.message.tenant:
                self.engine.pacing.took(one.message.tenant, len(one.deliveries))
        self._schedule(shard, accepted)

    def _schedule(self, shard: int, accepted: Sequence[Accepted]) -> None:
        """These messages are durable."""
        counters, scheduler = self.settler.counters, self.engine.scheduler
        counters.accepted_messages += len(accepted)
        for one in accepted:
            held = False
            if one.message.wishes is not None:
                held = one.message.is_held(clock_us())
                self.engine.deadlines.accepted(shard, one.message)
            for delivery in one.deliveries:
                counters.accepted_recipients += len(delivery.recipients)
                if not held and delivery.index < AT_ONCE:  # else it is found by the report of the next checkpoint
                    scheduler.add(shard, delivery)

    def original(self, message: Message) -> bytes:
        """The content of a message that a notification is about."""
        return self.read_body(self.stores[shard_of(message.id)], message)

    @staticmethod
    def read_body(store: Store, message: Message) -> bytes:
        """Read content in a thread, so that the disk does not hold up the hub. Raises BodyDamaged, BodyUnreadable."""
        try:
            return in_thread(store.body, message)
        except MemoryError:
            raise BodyUnreadable("there is no memory to read the content now") from None

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start all parts, say that we are ready, and go on until it is time to stop."""
        self.service.start()
        self.lag.start()
        self.thrift.start()
        self.watch.start()
        # After the service: who writes a new order down later than we read finds us, and tells us.
        self.engine.controls.begin(self.written_orders())
        self.engine.pacing.begin()
        self.engine.pacing.await_counts(self.child.setup.workers)
        self.engine.start()
        self._listening = gevent.spawn(self._listen_to_nudges)
        for listener in self.listeners:
            listener.start()
        for pickup in self.pickups:
            try:
                pickup.start()
            except DirectoryError as error:
                raise StartError(CANNOT_CREATE, str(error)) from None
        self.child.on_reload = self.reload
        gc.collect()
        gc.freeze()  # what start-up made stays; the collector need not look at it again
        # A collection looks at all that came since the last one, some 0.4 µs each: small steps, so that a worker whose
        # connections become many is not held up. The whole is looked at after 20 million.
        gc.set_threshold(5_000, 5, 800)
        self.child.ready()
        self.child.stop_requested.wait()
        self.stop()

    def written_orders(self) -> Orders:
        """The operator's orders. Raises StartError for what cannot be read: better no mail than mail that was held."""
        try:
            return read_orders(self.config.spool)
        except (OSError, ValueError) as error:
            raise StartError(DATA, f"{orders_file(self.config.spool)}: {error}") from None

    def reload(self, config: Config) -> None:
        """Take a new configuration for everything that begins from now on."""
        if config.dns != self.config.dns or not config.dns.servers:  # /etc/resolv.conf may have changed, too
            # The old one answers what it was asked; nobody asks it any more.
            self.resolver = Resolver(config.dns, self.descriptors.shares(config).lookups)
        self.config = config
        router = Router(config, self.resolver)
        self.settler.provider_of = router.provider_of
        self.engine.configure(config, router)
        for store in self.stores.values():
            store.configure(config)
        self.intake.configure(config)
        self.logins.configure(config)
        for door in self.doors:
            door.configure(config)
        self._share_descriptors()
        log.info("configuration reloaded")

    def _share_descriptors(self) -> None:
        """Bound what clients and remote hosts may take, where the configuration allows more than there are."""
        shares = self.descriptors.shares(self.config)
        self.occupancy.most = shares.sessions
        enough = shares.connections >= self.config.delivery.connections
        self.engine.connecting.room.most = UNBOUNDED if enough else shares.connections
        self.engine.connecting.fill_room()

    def stop(self) -> None:
        """Take nothing new, finish what is under way within the time we have, write everything down."""
        self.balance.leave()
        doors = [gevent.spawn(door.stop, self.child.deadline) for door in self.doors]
        finished = self.engine.stop()
        in_time = self.child.finish(finished)
        gevent.joinall(doors, timeout=max(self.child.deadline - time.monotonic(), 0.0))
        if not in_time:
            log.warning("%d connections had to be cut off", len(self.engine.connections))
        self.service.stop()
        self.lag.stop()
        self.thrift.stop()
        self.watch.stop()
        self.logins.close()
        self.incidents.tell_rest()
        for store in self.stores.values():
            try:
                store.close()
            except StoreError as error:
                log.error("%s", error)
        if self._listening is not None:
            self._listening.kill()  # it waits on a descriptor that is closed now
        self.limits.close()

    def _listen_to_nudges(self) -> None:
        """Act on what other workers tell through the table of limits, and look after it once a second."""
        while True:
            try:
                gevent.select.select([self.limits.fileno()], [], [], NUDGE_CARE_S)
                self.engine.connecting.nudged(self.limits.recv_nudges())
            except Exception:
                log.exception("bug: what was told through the table of limits")
                gevent.sleep(NUDGE_CARE_S)

    # -- about ourselves -----------------------------------------------------------------------------------------

    def memory(self) -> int:
        """Resident bytes now."""
        self._statm.seek(0)
        return int(self._statm.read().split()[1]) * resource.getpagesize()


def main(child: Child) -> None:
    """The worker's life, as `run_child` wants it."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    socket.setdefaulttimeout(None)
    Worker(child).run()


if __name__ == "__main__":
    raise SystemExit(run_child(main))
