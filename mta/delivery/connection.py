"""One outgoing connection: the greenlet that opens it, carries delivery after delivery, and closes it.

The protocol is `mta.smtp.client` (bytes in, events and bytes out), waiting is `mta.delivery.wire`; here they meet the
engine, which hands out deliveries (`next_job`), judges what came of them (`settle`) and is told how the connection
began and ended. While the peer works on the content of one message the envelope of the next is already under way, so
in steady state a message takes one round trip (RFC 2920).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta.config.shaping import Shaping
from mta.delivery.approach import QUIT_S, Approach, LateError
from mta.delivery.wire import ShortageError, TlsError, WireError
from mta.queue.errors import StoreError
from mta.queue.records import REQUIRE_TLS, Delivery, Wishes
from mta.queue.scheduler import Queue
from mta.smtp.client import ClientEvent, Finished, Transaction
from mta.smtp.errors import RemoteProtocolError
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.openings import Line
    from mta.delivery.pacing import Right
    from mta.delivery.path import Path

QUIT_READS = 10

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One transaction of one delivery on this connection."""

    queue: Queue
    delivery: Delivery
    transaction: Transaction
    started_s: float
    cold: bool  # its content has to be read from disk
    right: Right | None = None  # by the limits of its tenant; None when there are none
    marked: bool = False  # its content was sent: after a crash it may be a duplicate


class Connection(Approach):
    """A connection of `path` that pulls from `lane`. Made by `Connecting`, which spawns `run`."""

    def __init__(self, engine: Engine, path: Path, lane: Lane) -> None:
        super().__init__(engine, path)
        self.lane = lane
        self.leases: list[str] = []  # what it holds
        self.shared: tuple[str, ...] = ()  # of those over more than its path, as `Holders` has it
        self.turn_s = self.opened_s  # when its turn among the workers began
        self.opening_s = 0.0  # how long it took until the session was open
        self.messages = 0  # transactions begun
        self.recipients = 0  # in these
        self.completed = 0  # of those, the ones that came to a verdict
        self.jobs: list[Job] = []
        self.established = False
        self.line: Line[Path] | None = None  # where it counts while it is being opened; the engine's
        self.idle = False

    def __repr__(self) -> str:
        state = "idle" if self.idle else f"{len(self.jobs)} under way" if self.established else "opening"
        return f"<Connection to {self.name}: {state}, {self.messages} messages>"

    def run(self) -> None:
        """Open, converse, close."""
        try:
            failure = self._open()
            if failure is not None:
                self.engine.keeper.connection_failed(self, failure)
                return
            self.established = True
            self.engine.connecting.established(self)
            self._converse()
        except ShortageError as shortage:
            self.engine.connecting.lacking(str(shortage))
        except LateError:
            pass
        except MemoryError:
            raise  # the process ends and starts anew
        except Exception as error:
            log.exception("bug: connection to %s ends", self.name)
            if not self.established:
                reply = Reply(451, "4.3.5", (f"internal error: {error}",), local=True)
                self.engine.keeper.connection_failed(self, reply)
        finally:
            self.wire.close()
            self.engine.connecting.closed(self)

    def wake(self) -> None:
        """There may be work, or it is time to close."""
        self.wire.wake()

    def abandon(self) -> None:
        """The address that it leaves from is gone: no answer will come. What it carries goes back to its queue, as no
        attempt; but for a message of which the end was sent, which may have arrived: that waits for its time."""
        if not any(job.transaction.dot_sent for job in self.jobs):
            self.stopping = self.abandoned = True
            jobs, self.jobs = self.jobs, []
            for job in reversed(jobs):
                self.engine.dispatch.untouched(job)
        self.wire.wake()

    # -- conversation --------------------------------------------------------------------------------------------

    def _converse(self) -> None:
        """Carry deliveries until there is none, or the peer or a limit ends it. Hot path (bench S1, S2, S8)."""
        wire, client = self.wire, self.client
        try:
            while not self.abandoned:
                self._fill()
                if not self.jobs:
                    if not self._rest():
                        return
                    continue
                self._set_deadline(client.phase)
                data = wire.read()
                if isinstance(data, bytes):
                    self._handle(client.receive(data) if data else client.eof())
                    if client.closed:
                        return
        except WireError as error:
            if isinstance(error, TlsError) and self.path.shaping.tls == "opportunistic":
                assert self.target is not None
                self.engine.broken_tls.add(self.target.address, self.engine.monotonic())
            client.unsent(wire.unsent)
            try:
                early = wire.early()
                self._handle(client.receive(early) if early else [])
            except RemoteProtocolError:
                pass
            self._handle(client.lost(str(error)))
        except RemoteProtocolError as error:
            self._handle(client.lost(f"protocol error: {error}"))
        except MemoryError:
            raise
        except Exception as error:
            log.exception("bug: the conversation with %s ends", self.name)
            self._handle(client.lost(f"internal error: {error}"))
        finally:
            if client.pipelining_suspect or client.chunking_suspect:
                self._remember_suspect()

    def _fill(self) -> None:
        """Give the machine what it can take, and the wire what the machine has to say."""
        client, dispatch, path = self.client, self.engine.dispatch, self.path
        while client.can_send and (self.lane.turns.count or path.claims or len(path.lanes) > 1):
            if self.jobs and not path.prompt:
                break
            job = dispatch.next_job(self)
            if job is None:
                self._write()
                return
            if job.transaction.flags & REQUIRE_TLS and not self.engine.protection.admits(self, job):
                continue
            if job.cold:
                try:
                    self._write()  # what the peer waits for does not wait for our disk
                except WireError:
                    dispatch.put_back(path, job)
                    raise
                if not dispatch.read_content(self, job):
                    continue
                if not client.can_send:
                    dispatch.put_back(path, job)
                    break
            self.jobs.append(job)
            self.messages += 1
            self.recipients += len(job.transaction.recipients)
            self._handle(client.send(job.transaction))
        if path.message_rates and path.idle and self.jobs:
            self.engine.connecting.kick_path(path)  # this one is busy: another asks when the next message may go
        self._write()

    def _write(self) -> None:
        """Send what the machine has to say. The end of a message leaves after the mark that it may have arrived."""
        output = self.client.output()
        if output:
            for job in self.jobs:
                if job.transaction.dot_sent and not job.marked:
                    try:
                        self.engine.dispatch.mark_in_flight(job)
                    except StoreError as error:
                        self.client.unsent(sum(map(len, output)))
                        self.abandon()
                        raise WireError(str(error)) from None
                    job.marked = True
            self._send(output, self.path.shaping.timeouts.block)

    def _rest(self) -> bool:
        """Nothing to do: wait for work, the peer, or the end of patience. Whether the connection goes on."""
        wire, connecting = self.wire, self.engine.connecting
        if connecting.may_rest(self):
            self._waited_for = None
            wire.deadline = time.monotonic() + self.path.shaping.idle
            wire.waiting_for = "work"
            try:
                # Bytes: the peer closes, or says why it will. A session that ends between messages is no failure.
                return not isinstance(wire.read(), bytes)
            except WireError:
                pass
            finally:
                connecting.rested(self)
        self.client.quit()
        wire.write(self.client.output(), QUIT_S)
        if connecting.is_wanted(self):
            self._await_end()
        return False

    def _await_end(self) -> None:
        """Let the peer close, which it should do after its answer to QUIT (RFC 5321 4.1.1.10), but not for long: then
        it does not count this connection any more when another one comes."""
        wire = self.wire
        wire.deadline = time.monotonic() + QUIT_S
        wire.waiting_for = "the answer to QUIT"
        try:
            for _ in range(QUIT_READS):
                if not wire.read():
                    break
        except WireError:
            pass

    def _handle(self, happened: list[ClientEvent]) -> None:
        for event in happened:
            if isinstance(event, Finished):
                for position, job in enumerate(self.jobs):
                    if job.transaction is event.transaction:
                        del self.jobs[position]
                        self.engine.dispatch.settle(self, job)
                        break

    def _remember_suspect(self) -> None:
        """The host did not bear a form of pipelining, or chunks: it gets the next plainer one for a while."""
        assert self.target is not None
        if self.client.chunking_suspect:
            log.info("%s does not bear BDAT; it gets DATA for a while", self.name)
            self.engine.no_chunking.add(self.target.address, time.monotonic())
        if not self.client.pipelining_suspect:
            return
        log.info("%s does not bear pipelining %s messages; not used for a while", self.name,
                 "inside" if self.client.pipelining_suspect == "inside" else "across")
        memory = (self.engine.no_pipelining if self.client.pipelining_suspect == "inside"
                  else self.engine.no_pipelining_across)
        memory.add(self.target.address, time.monotonic())


def transaction_for(delivery: Delivery, at_most: int) -> Transaction:
    """The next transaction of `delivery`: those of its recipients that this attempt has not tried, up to `at_most`."""
    message = delivery.message
    recipients = delivery.recipients
    untried = len(recipients) - delivery.tried
    if untried > at_most or delivery.tried:
        recipients = recipients[: min(untried, at_most)]
    return Transaction(message.sender, recipients, message.content or b"", message.flags, message.ret, message.envid,
                       None if message.wishes is None else message.wishes.priority)


def ask_for_time(transaction: Transaction, wishes: Wishes, shaping: Shaping, now_us: int) -> None:
    """Have the host keep to the time by which the message is to be delivered: what is left of it (RFC 2852 4.1.4)."""
    if wishes.by_us:
        transaction.by_mode = wishes.by_mode
        transaction.by_s = (wishes.by_us - now_us) // 1_000_000
        if wishes.returns:
            transaction.by_s = max(transaction.by_s, 1)  # it is not over yet, and nobody may say that it is
        transaction.by_required = shaping.deliver_by == "required"
