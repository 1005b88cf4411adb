"""Mail that requires TLS (RFC 8689): which session may carry it, and what becomes of it when none may.

A session is *protected* when all that RFC 8689 4.2.1 asks of its host holds: TLS, a certificate of the host's name
from an authority that we trust, and REQUIRETLS in the answer to EHLO. Beside that nobody else may have named the host:
the MX records of the recipient's domain are authentic, as a validating resolver says (`dns.validates`), or the host is
a relay of the configuration. Nothing less will do: DANE and MTA-STS policies are not known here, so what only they
could show is not believed.

Protection belongs to the connection, not to a queue: when the first such message comes upon a session that is not
protected, that session ends, and for a while connections of its path are opened protected where a host allows it. Other
mail goes over them, too. Where no host allows it an ordinary session is opened, which knows what they lack: for that
reason such mail is returned (5.7.30, 5.7.10), or waits when a host could not be reached to be asked. So limits, rates
and turns are those of all mail.

A bounce that tells of such mail is protected where it can be, and goes without where it cannot (RFC 8689 5).
"""

from __future__ import annotations

import logging
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from mta.config.schema import Config
from mta.delivery.routing import Route
from mta.delivery.sources import Source
from mta.delivery.targets import Target
from mta.delivery.tls import verifying_context
from mta.loop.threads import in_thread
from mta.queue.records import REQUIRE_TLS
from mta.smtp.reply import Reply
from mta.smtp.transaction import NO_REQUIRETLS

if TYPE_CHECKING:
    from mta.delivery.connection import Connection, Job
    from mta.delivery.engine import Engine
    from mta.delivery.path import Path

WANTED_S: Final = 600.0  # for how long after the last such message new connections of its path are opened protected
UNFIT_S: Final = 300.0  # before a host that could not protect is asked again
UNFIT_KEPT: Final = 10_000

log = logging.getLogger(__name__)


class Protection:
    """What one engine knows of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._contexts: dict[str, ssl.SSLContext] = {}  # by source
        self._ca_file: str | None = None
        self._unfit: OrderedDict[tuple[str, str], tuple[float, Reply]] = OrderedDict()  # by host and address

    def configure(self, config: Config) -> None:
        """Take a new configuration."""
        self._ca_file = config.delivery.ca_file
        self._contexts.clear()
        self._unfit.clear()

    # -- opening -------------------------------------------------------------------------------------------------

    def is_wanted(self, path: Path) -> bool:
        """Whether a new connection of `path` should be protected."""
        return path.protect_until_s > self._engine.monotonic()

    def context(self, source: Source) -> ssl.SSLContext:
        """TLS that verifies. Waits: the system's authorities take tens of milliseconds to read. Raises OSError."""
        context = self._contexts.get(source.name)
        if context is None:
            options, ca_file = source.options, self._ca_file
            context = in_thread(verifying_context, ca_file, options.tls_certificate, options.tls_key)
            if ca_file == self._ca_file:  # else there is another configuration by now
                self._contexts[source.name] = context
        return context

    def unfit(self, target: Target) -> Reply | None:
        """Why `target` cannot protect, when that was found lately."""
        until_s, reply = self._unfit.get((target.host.name, target.address), (0.0, None))
        return reply if until_s > self._engine.monotonic() else None

    def found_unfit(self, target: Target, reply: Reply) -> None:
        """`target` cannot protect."""
        self._unfit[target.host.name, target.address] = (self._engine.monotonic() + UNFIT_S, reply)
        self._unfit.move_to_end((target.host.name, target.address))
        if len(self._unfit) > UNFIT_KEPT:
            self._unfit.popitem(last=False)

    # -- one message ---------------------------------------------------------------------------------------------

    def admits(self, connection: Connection, job: Job) -> bool:
        """Whether `connection` may carry `job`, which requires TLS. If not it was settled, or is left to another
        connection. Waits for DNS."""
        engine, path = self._engine, connection.path
        path.protect_until_s = engine.monotonic() + WANTED_S
        if not connection.protected and connection.shortcoming is None:
            connection.stopping = True
            engine.dispatch.put_back(path, job)
            return False
        refusal = connection.shortcoming
        if connection.protected:
            domain = job.delivery.domain
            if domain not in connection.vouched:
                connection.vouched[domain] = self._named_by_others(connection, domain)
                engine.dispatch.put_back(path, job)  # much may have changed meanwhile: its turn comes anew
                return False
            refusal = connection.vouched[domain]
        if refusal is None:
            return True
        if not job.transaction.sender:
            job.transaction.flags &= ~REQUIRE_TLS
            return True
        job.transaction.local_reply = refusal
        engine.dispatch.settle(connection, job)
        return False

    def _named_by_others(self, connection: Connection, domain: str) -> Reply | None:
        """What is wrong with how we came upon the host of `domain`; None when nothing is. Waits for DNS."""
        route = self._engine.router.route(domain)  # from the cache, as a rule
        if not isinstance(route, Route):
            return Reply(451, route.enhanced if not route.permanent else "4.4.4", (route.text,), local=True)
        if not route.authentic:
            text = (f"The message requires TLS (REQUIRETLS), and it is not certain that the mail hosts of {domain} are "
                    "its own: DNSSEC does not say so")
            return Reply(550, "5.7.10", (text,), local=True)
        target = connection.target
        if target is None or all(host.name != target.host.name for host in route.hosts):
            return Reply(451, "4.4.4", (f"The mail hosts of {domain} have changed",), local=True)
        return None


def shortcoming(target: Target, phase: str, reply: Reply) -> Reply:
    """What is said of such mail when `target` gave no protected session: for good where TLS is lacking or wrong, else
    for now."""
    without_tls = phase == "starttls" and (reply.local or reply.code >= 500)
    if without_tls or (phase == "handshake" and reply.enhanced == "4.7.5"):
        return Reply(550, "5.7.10", (f"The message requires TLS (REQUIRETLS): {reply.text}",), local=True)
    text = f"The message requires TLS (REQUIRETLS), and a host that may give it fails: {target.host.name}: {reply}"
    return Reply(451, "4.7.10", (text,), local=True)


def not_offered(target: Target) -> Reply:
    """The same of a host that does not offer REQUIRETLS."""
    return Reply(550, "5.7.30", (f"{NO_REQUIRETLS}: {target.host.name}",), local=True)
