"""The sandbox as a whole: put together, started, kept in time, stopped. Imported only in a patched process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import gevent
from gevent.event import Event

from mta.config.hosts import Endpoint
from mta.sandbox.client import default_control
from mta.sandbox.control import Control
from mta.sandbox.ledger import Ledger
from mta.sandbox.nameserver import NameServer
from mta.sandbox.receiver import Receiver
from mta.sandbox.settings import Settings


@dataclass(frozen=True, slots=True)
class Places:
    """Where a sandbox listens."""

    dns: Endpoint
    smtp_port: int
    control: str


class Service:
    """One running sandbox."""

    def __init__(self, settings: Settings) -> None:
        """Raises OSError when the directory for captured messages cannot be made."""
        self._settings = settings
        self._receiver = Receiver(settings, Ledger(settings.remember, settings.log, settings.times))
        self.control = Control(settings, self._receiver, self.stop)
        self.bugs = 0  # greenlets that failed; the traceback of each is on stderr
        self._stopped = Event()
        self._changed = Event()
        hub = gevent.get_hub()
        report = hub.handle_error

        def count_bug(context: object, kind: type[BaseException], value: object, trace: object) -> None:
            self.bugs += 1
            report(context, kind, value, trace)

        hub.handle_error = count_bug

    def start(self) -> Places:
        """Open all sockets. Raises OSError when an address is taken, ValueError for `dns` and `control`."""
        self._receiver.start()
        internet = self._receiver.internet
        dns = NameServer(internet, self._receiver.ledger).start(self._settings.dns)
        control = self.control.start(self._settings.control or default_control())
        internet.on_change.append(self._changed.set)
        gevent.spawn(self._keep_time)
        return Places(dns, self._receiver.port, control)

    def stop(self) -> None:
        """Let `wait` return."""
        self._stopped.set()

    def wait(self) -> None:
        """Serve until `stop`."""
        self._stopped.wait()
        gevent.sleep(0.01)  # the answer to a request to stop is on its way
        self.control.close()

    def _keep_time(self) -> None:
        """Begin and end the phases of personalities."""
        internet = self._receiver.internet
        while True:
            self._changed.clear()
            change = internet.next_change()
            timeout = None if change is None else max(0.0, change - time.monotonic())
            if not self._changed.wait(timeout):
                internet.refresh()

