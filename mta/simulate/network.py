"""Connections of a simulation: what the engine takes for one, with a model of a receiver at the other end.

Opening follows the real connection (`mta.delivery.connection`): hosts by preference, addresses, plainer forms for hosts
that need them. In place of the wire there is a session of `mta.simulate.receivers`, and waiting is by the virtual
clock. The speed of the MTA itself is one number, messages per second over all connections (`Machine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mta.config.shaping import TlsPolicy
from mta.delivery.approach import RefusalError, patience
from mta.delivery.connection import Connection, Job
from mta.delivery.settle import Peer
from mta.delivery.targets import Target
from mta.queue import events
from mta.sandbox.internet import Host as SandboxHost
from mta.simulate.kernel import VirtualHub
from mta.simulate.receivers import Receivers, Session
from mta.smtp.reply import Reply

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.lane import Lane
    from mta.delivery.path import Path

SHORTEST_S = 0.001  # of a transaction, on the best of networks


class Machine:
    """How fast the MTA is by itself: so many messages per second, one after the other."""

    def __init__(self, hub: VirtualHub, rate: float) -> None:
        self._hub = hub
        self._each_s = 1.0 / rate
        self._free_at = 0.0

    def wait_s(self) -> float:
        """How long the next message takes until it has had its part of the processor."""
        now = self._hub.now
        self._free_at = max(self._free_at, now) + self._each_s
        return self._free_at - now


class SimulatedConnection(Connection):
    """See `Connection`."""

    def __init__(self, engine: Engine, path: Path, lane: Lane, hub: VirtualHub, receivers: Receivers,
                 machine: Machine) -> None:
        super().__init__(engine, path, lane)
        self._hub = hub
        self._receivers = receivers
        self._machine = machine
        self._model: Session | None = None
        self._woken = hub.event()

    def wake(self) -> None:
        """There may be work, or it is time to close."""
        self._woken.set()

    def run(self) -> None:
        """Open, converse, close. A bug ends the simulation."""
        try:
            failure = self._open()
            if failure is not None:
                self.engine.keeper.connection_failed(self, failure)
                return
            self.established = True
            self.engine.connecting.established(self)
            self._converse()
        finally:
            if self._model is not None:
                self._model.leave()
            self.engine.connecting.closed(self)

    def _session(self, target: Target, tls: TlsPolicy, esmtp: bool = True, verify: bool = False) -> None:
        if self._model is not None:
            self._model.leave()
            self._model = None
        self.target = target
        host = self._reach(target)
        model = self._model = Session(self._receivers, host, self.path.source.name,
                                      patience(self.path.shaping.timeouts))
        opening = model.open(tls, esmtp)
        self._hub.sleep(opening.seconds)
        refused, phase = opening.refused, opening.phase
        if refused is None and model.was_cut:
            refused, phase = Reply(451, "4.4.1", ("connection reset by the host",), local=True), "greeting"
        if refused is not None:
            model.leave()
            if refused.local:
                refused = refused._replace(lines=(f"{self.name}: {refused.text}",))
            raise RefusalError(refused, phase)
        model.on_cut = self.wake
        self.client.capabilities = model.capabilities
        self.peer = Peer(events.Remote(self.path.name, target.host.name, str(target)), self.name,
                         model.capabilities.dsn, self.path.source.name)

    def _reach(self, target: Target) -> SandboxHost:
        """Connect. Raises RefusalError."""
        host = self._receivers.internet.host_at(target.address)
        if host is not None and host.open:
            return host
        text = "connect: Connection refused"
        if host is None or host.state == "unreachable":
            self._hub.sleep(self.path.shaping.timeouts.connect)
            text = "timed out waiting for the connection"
        raise RefusalError(Reply(451, "4.4.1", (f"{self.name}: {text}",), local=True), "connect")

    def _converse(self) -> None:
        """Carry deliveries until there is none, or the peer or a limit ends it. Hot path."""
        hub, dispatch, model, path = self._hub, self.engine.dispatch, self._model, self.path
        assert model is not None
        warm = False
        while True:
            job = dispatch.next_job(self)
            if job is None:
                if not self._rest():
                    return
                if model.was_cut:
                    return
                warm = False
                continue
            self.jobs.append(job)
            if path.message_rates and path.idle:
                self.engine.connecting.kick_path(path)
            self.messages += 1
            self.recipients += len(job.transaction.recipients)
            transaction, delivery = job.transaction, job.delivery
            seconds, ended = model.transact(transaction, delivery.domain.encode(), delivery.message.size, warm,
                                            path.shaping.pipelining)
            hub.sleep(max(seconds, SHORTEST_S, self._machine.wait_s()))
            self._settle(job, model)
            if ended or model.was_cut:
                return
            warm = path.prompt and transaction.mail is not None and transaction.mail.code < 300

    def _settle(self, job: Job, model: Session) -> None:
        transaction = job.transaction
        if model.was_cut and not transaction.lost:
            transaction.forget()
            transaction.lost, transaction.lost_phase = "connection reset by the host", "mail"
        self.jobs.remove(job)
        self.engine.dispatch.settle(self, job)

    def _rest(self) -> bool:
        """Nothing to do: wait for work or the end of patience. Whether the connection goes on."""
        connecting = self.engine.connecting
        if not connecting.may_rest(self):
            return False
        assert self._model is not None
        self._woken.clear()
        try:
            return bool(self._woken.wait(self.path.shaping.idle)) and not self._model.was_cut
        finally:
            connecting.rested(self)
