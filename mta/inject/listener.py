"""The SMTP door: accepts connections on one listening socket, and has what their sessions have in common.

A session (`mta.inject.session`) is a handful of callbacks; the options by which it goes on are those of the moment at
which it began.

* A connection too many is told `421 4.3.2` and closed at once. Several of them are in one turn of the loop: who floods
  us must not fill the backlog, in which others wait. Without a file descriptor left for it, a spare one is given up for
  a moment to do just that; otherwise it would wait in the backlog for ever and wake us for ever.
* A burst of connections is spread over all workers: who has more sessions than another one lets that go first, for
  `COURTESY_S`, and then takes one connection (`mta.inject.balance`).
* A load balancer in `proxy_from` counts as one client until it has said whom it speaks for; then that one counts.
* Of a Unix socket the client is the system user at its other end, who has logged in by opening it.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.hub import get_hub

from mta.config.checks import changed
from mta.config.schema import Config, LabelValues, Listener
from mta.inject.certificates import CertificateError, Certificates, Contexts
from mta.inject.intake import HONOURED, Source
from mta.inject.logins import Logins
from mta.inject.occupancy import TOO_MANY, TOO_MANY_HERE, TOO_OFTEN, WHY, Occupancy
from mta.inject.opening import Opening
from mta.inject.permissions import ListenerPermissions, contains
from mta.inject.session import Session
from mta.inject.usage import Account, Usage, no_count
from mta.inject.usernames import USER_NAMES
from mta.loop.threads import in_thread
from mta.queue.shortage import SHORTAGE, Spell
from mta.smtp.peer import Identity, Peer
from mta.smtp.reply import Reply
from mta.smtp.server import Envelope
from mta.smtp.settings import ServerSettings
from mta.smtp.transaction import CARRIED

# In a patched process these names are gevent's, whose close() puts the closing off; these are the kernel's.
_socket: Final = monkey.get_original("socket", "socket")
_close: Final = monkey.get_original("os", "close")
_AF_UNIX: Final = 1
_SOL_SOCKET: Final = 1
_SO_PEERCRED: Final = 17
_IPPROTO_TCP: Final = 6
_TCP_NODELAY: Final = 1
_MSG_DONTWAIT: Final = 0x40
_READ: Final = 1  # libev's EV_READ

COURTESY_S = 0.001  # for a worker with fewer sessions to take a connection
ACCEPT_PAUSE_S = 0.1  # after a failure to accept that will not pass at once
REFUSED_AT_ONCE = 20  # connections in one turn of the loop: 1 ms; of those that may stay it is one

_NO_LABELS: Final = LabelValues()

Submit = Callable[[Envelope, bytes, Source, Callable[[Reply], None]], None]
"""Takes a message, and calls back with the reply once it is on stable storage or refused: at once, or later."""

log = logging.getLogger(__name__)


class SmtpListener:
    """Accepts mail on one listening socket. Must be used within one hub."""

    def __init__(
        self,
        sock: Any,
        config: Config,
        listener: Listener,
        submit: Submit,
        intake_closed: Callable[[], Reply | None],
        occupancy: Occupancy | None = None,
        logins: Logins | None = None,
        usage: Usage | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        """`sock` listens already and is taken over. `intake_closed` is asked at every MAIL (452 4.3.1: no room).

        Raises CertificateError. `lenient`: until the files that it needs can be used connections are left to others.
        """
        self._sock = _socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._sock.setblocking(False)
        self._is_unix = sock.family == _AF_UNIX
        if not self._is_unix:
            self._sock.setsockopt(_IPPROTO_TCP, _TCP_NODELAY, 1)  # accepted sockets inherit it
        self.submit = submit
        self._intake_closed = intake_closed
        self._listener = listener
        # By place, which a reload keeps: of several on port 0 the address does not tell which one this is.
        self._index = next(index for index, one in enumerate(config.listeners) if one is listener)
        self._occupancy = occupancy if occupancy is not None else Occupancy()
        self.logins = logins if logins is not None else Logins(config)
        self.logins.on_change.append(self._renew)
        self.usage = usage if usage is not None else Usage(no_count)
        self._certificates: Certificates | None = None
        self.refreshing = False
        """Changed certificates are being read."""
        self._sessions: dict[Session, Account] = {}  # with whom each was counted for, whatever a reload says since
        self._empty = Event()
        self._empty.set()
        self._spare = _open_spare()
        self._descriptors = Spell(log, "cannot accept a connection", "connections are accepted")
        self.burst = self._occupancy.burst
        self.memory = Spell(log, "a session ends", "there is memory for sessions")
        loop = get_hub().loop
        self._readable = loop.io(self._sock.fileno(), _READ)
        self._pause = loop.timer(ACCEPT_PAUSE_S, ACCEPT_PAUSE_S)
        self._courtesy = loop.timer(COURTESY_S, COURTESY_S)
        self._accepts = False  # it was started
        self._take_over(config, lenient=lenient)

    def __repr__(self) -> str:
        return f"<SmtpListener {self._listener.smtp}: {self.sessions} sessions>"

    @property
    def sessions(self) -> int:
        """How many sessions this listener has."""
        return len(self._sessions)

    @property
    def name(self) -> str:
        """As it is called in the configuration."""
        return str(self._listener.smtp)

    @property
    def waiting(self) -> str:
        """Why no connections are taken, in words; empty when they are."""
        if self._certificates is not None and self._certificates.contexts is None:
            return "a certificate cannot be used"
        if self._listener.auth != "off" and self.logins.lacks_users:
            return "the file of users cannot be used"
        return ""

    def configure(self, config: Config) -> None:
        """Take the options of a new configuration for sessions that begin from now on. Certificates that cannot be used
        are told, and those from before are shown."""
        try:
            self._take_over(config)
        except CertificateError as error:
            log.error("%s: certificates stay as they were: %s", self.name, error)
            self._renew()

    def _take_over(self, config: Config, *, lenient: bool = False) -> None:
        self._config = config
        self._listener = config.listeners[self._index]
        self.limits = config.smtp
        self._occupancy.content.limit = config.memory.receiving
        listener = self._listener
        self.permissions = ListenerPermissions(listener, config, self.logins.is_user, self.logins.incidents)
        self._accounts = {name: Account(f"user:{name}", f"user {name}", user.limits)
                          for name, user in config.users.items()}
        self._own_account = Account(f"listener:{listener.smtp}", "this listener", listener.limits)
        if listener.tls == "off" or not config.certificates:
            self._certificates = None
        else:
            options = (config.certificates, listener.client_ca, listener.hostname or config.hostname)
            if self._certificates is None or not self._certificates.are_of(*options):
                self._certificates = Certificates(*options, lenient=lenient)
            else:
                self.refresh()
        self._renew()

    def _renew(self) -> None:
        """Settings for sessions that begin from now on."""
        config, listener = self._config, self._listener
        self.contexts: Contexts | None = self._certificates.contexts if self._certificates is not None else None
        self.implicit_tls = listener.tls == "implicit"
        self.settings = ServerSettings(
            listener.hostname or config.hostname,
            message_size=min(config.smtp.message_size, listener.limits.message_size or config.smtp.message_size),
            recipients=config.smtp.recipients,
            line_length=config.smtp.line_length,
            command_length=config.smtp.command_length,
            errors=config.smtp.errors,
            commands=config.smtp.commands,
            honours=(CARRIED | HONOURED) - ({"DELIVERBY"} if config.smtp.deliver_by is None else set()),
            deliver_by_s=int(config.smtp.deliver_by or 0),
            future_release_s=_longest_hold_s(config),
            permissions=self.permissions,
            starttls=self.contexts is not None and not self.implicit_tls,
            mechanisms=self.logins.mechanisms() if listener.auth != "off" else (),
            auth_without_tls=listener.auth_without_tls,
            fake_salt_key=self.logins.users.secret,
            intake_closed=self._intake_closed,
            budget=self._occupancy.content,
            coming=self._occupancy.coming,
        )
        if self._accepts:
            self._wait()

    def refresh(self) -> None:
        """Look whether certificates have changed. They are read in a thread."""
        if self._certificates is not None and not self.refreshing and self._certificates.changed():
            self.refreshing = True
            gevent.spawn(self._refresh, self._certificates)

    def _refresh(self, certificates: Certificates) -> None:
        try:
            news = in_thread(certificates.read)
            if certificates.take(news) and certificates is self._certificates:
                self._renew()
        finally:
            self.refreshing = False

    def start(self) -> None:
        """Begin to accept."""
        self._accepts = True
        self._wait()

    def _wait(self) -> None:
        """Wait for connections, unless what it needs for them cannot be used: then another worker may have it."""
        if self.waiting:
            self._readable.stop()
        else:
            self._readable.start(self._accept)

    def _go_on(self) -> None:
        self._pause.stop()
        self._wait()

    def stop(self, deadline_s: float = math.inf) -> None:
        """Accept no more and end all sessions: those in a transaction may finish it until `deadline_s` (monotonic).

        Returns when all are gone, or a moment after the deadline.
        """
        self._accepts = False
        self._pause.close()
        self._courtesy.close()
        self._readable.close()
        self._sock.close()
        self._give_up_spare()
        for session in list(self._sessions):
            session.stop()
        left_s = deadline_s - time.monotonic()
        if not self._empty.wait(None if left_s == math.inf else max(left_s, 0.0)):
            log.warning("%d sessions had to be cut off", len(self._sessions))
            for session in list(self._sessions):
                session.cut_off()
            self._empty.wait(1.0)

    # -- accepting; on the hub ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        """There is a connection: ours, unless another worker takes it now."""
        if self._occupancy.is_ahead:
            self._readable.stop()
            self._courtesy.again(self._accept_after_all)
        else:
            self._take()

    def _accept_after_all(self) -> None:
        self._courtesy.stop()
        self._wait()
        self._take()

    def _take(self) -> None:
        for _ in range(REFUSED_AT_ONCE):
            if not self._take_one():
                break

    def _take_one(self) -> bool:
        """Accept a connection; whether it was refused, so that there is time for another one."""
        try:
            # Not accept(): in a patched process that makes a gevent socket.
            fd, address = self._sock._accept()
        except BlockingIOError:
            return False  # another worker was faster
        except OSError as error:
            self._accept_failed(error)
            return False
        if self._descriptors.lasts:
            self._descriptors.worked(time.monotonic())
        if self.memory.lasts:
            self.memory.worked(time.monotonic())
        sock = _socket(self._sock.family, self._sock.type, self._sock.proto, fileno=fd)
        client = "" if self._is_unix else _plain(address[0])
        balancer = contains(self._listener.proxy_from, client)
        account = self._own_account
        refusal = self._enter(client, account, balancer=balancer)
        if refusal is not None:
            _say_and_close(sock, b"" if self.implicit_tls else refusal)
            self.logins.incidents.refused("session", client, self.name, WHY[refusal])
            return True
        try:
            sock.setblocking(False)
            uid = _user_of(sock) if self._is_unix else -1
            peer = Peer("", 0) if self._is_unix else self._peer(client, address[1])
            session = Session(self, sock, peer, balancer=balancer)
        except (OSError, MemoryError) as error:
            sock.close()
            self._occupancy.leave(client)
            self.usage.leave(account)
            if isinstance(error, MemoryError):  # else it is gone already
                self.memory.failed("there is no memory", time.monotonic())
            return True
        self._sessions[session] = account
        self._empty.clear()
        if self._is_unix:
            USER_NAMES.find(uid, session.start_as)
        else:
            session.start()
        return False

    def _enter(self, client: str, account: Account, *, balancer: bool) -> bytes | None:
        """Count a session in. The refusal, if it may not be: then it is not counted."""
        one_client: float = math.inf
        if not (balancer or self._is_unix):
            one_client = self.limits.sessions_per_client
            if (too_often := self._comes_too_often(client)) is not None:
                return too_often
        refusal = self._occupancy.enter(client, self.limits.sessions, one_client)
        if refusal is None and not self.usage.enter(account):
            self._occupancy.leave(client)
            return TOO_MANY_HERE
        return refusal

    def _comes_too_often(self, address: str) -> bytes | None:
        """The refusal of a stranger that has connected too often; who may relay by its address may do that, too."""
        too_often = self._occupancy.comes_too_often(address, self.limits.connections_per_client, time.monotonic())
        return TOO_OFTEN if too_often and not contains(self._listener.relay_from, address) else None

    def _peer(self, client: str, port: int) -> Peer:
        return Peer(client, port, may_xclient=contains(self._listener.xclient_from, client))

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in SHORTAGE:
            self._give_up_spare()
            try:
                fd, _ = self._sock._accept()
                _say_and_close(_socket(self._sock.family, self._sock.type, self._sock.proto, fileno=fd), TOO_MANY)
            except OSError:
                pass  # another worker or another thread was faster, or the client is gone
            self._spare = _open_spare()
            self._descriptors.failed(str(error.strerror), time.monotonic())
            self._readable.stop()
            self._pause.again(self._go_on)
        else:
            log.warning("cannot accept a connection: %s", error.strerror)  # it was aborted before we got to it

    def _give_up_spare(self) -> None:
        """Close it, once: by the next time its number may belong to a file of the store."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            _close(spare)

    # -- what sessions ask ----------------------------------------------------------------------------------------

    def entered(self, session: Opening, address: str, port: int) -> bool:
        """A load balancer has said who the client is. Whether that one may have a session more; else it is told."""
        address = _plain(address)
        refusal = self._comes_too_often(address) or self._occupancy.move(
            session.client, address, self.limits.sessions_per_client)
        if refusal is not None:
            session.turn_away(b"" if self.implicit_tls else refusal)
            self.logins.incidents.refused("session", address, self.name, WHY[refusal])
            return False
        session.is_from(self._peer(address, port))
        return True

    def ended(self, session: Session) -> None:
        """A session is over."""
        self._occupancy.leave(session.client)
        self.usage.leave(self._sessions.pop(session))
        if not self._sessions:
            self._empty.set()

    def user_of_certificate(self, names: tuple[str, ...], peer: Peer) -> Identity | None:
        """The user whom a verified client certificate with these names is a login of."""
        if not names or self._listener.auth == "off":
            return None
        return self.logins.by_certificate(names, peer, self.name, self.permissions)

    def account_of(self, identity: Identity) -> Account | None:
        """What a user may send in all; None when nothing was said about that."""
        return self._accounts.get(identity.user)

    def source_of(self, peer: Peer, helo: str) -> tuple[Source, tuple[Account, ...]]:
        """Where the mail of a client comes from, and for whom it counts."""
        listener, identity = self._listener, peer.identity
        user = self._config.users.get(identity.user) if identity is not None else None
        labels, believed, checks = listener.labels, listener.label_headers, listener.checks
        if user is not None:
            checks = changed(checks, user.checks)
            labels = LabelValues(
                tenant=user.labels.tenant or labels.tenant, campaign=user.labels.campaign or labels.campaign,
                pool=user.labels.pool or labels.pool, priority=user.labels.priority or labels.priority)
            believed = believed and user.label_headers
        source = Source.smtp(
            peer.address, peer.port, helo, self.settings.hostname, tls=peer.tls is not None,
            labels=labels if labels != _NO_LABELS else None, label_headers=believed,
            user=identity.user if identity is not None else "").checked(checks)
        accounts = (self._accounts.get(identity.user) if identity is not None else None, self._own_account)
        return source, tuple(account for account in accounts if account is not None and account.counts)


def _user_of(sock: Any) -> int:
    """The number of the system user at the other end of a Unix socket. Raises OSError."""
    uid: int = struct.unpack("3i", sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, 12))[1]
    return uid


def _plain(address: str) -> str:
    """An IPv4 address that came through a socket of IPv6, as it is."""
    return address.removeprefix("::ffff:") if "." in address else address


def _longest_hold_s(config: Config) -> int:
    """How long a client may have a message held: what is configured, but half of the time at least is for delivery."""
    return int(min(config.smtp.future_release or 0, config.shaping.expiries[0] / 2))


def _open_spare() -> int:
    """A descriptor to be given up in need; -1 when there is none left for that either."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _say_and_close(sock: Any, reply: bytes) -> None:
    """Tell a client that it cannot stay, without waiting for it."""
    try:
        if reply:
            sock.send(reply, _MSG_DONTWAIT)
    except OSError:
        pass  # it will see that the connection is closed
    finally:
        sock.close()
