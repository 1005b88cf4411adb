"""Who may send what: the rules on relaying, in one place. docs/security.md has them as a table.

By default nobody may send to anybody. What opens the door, in this order:

1. A login (password, client certificate, Unix socket, or what a trusted XCLIENT says): the rights of that user.
2. An address in `relay_from`, unless the listener requires a login.

Whoever is neither is refused, at RCPT with `550 5.7.1`, or at MAIL with `530 5.7.0` where it could log in: so that a
mail program asks for a password. On a listener that requires TLS nothing is taken before it.

Each refusal is told, once for a session and reason: who wants to send spam tries often (`mta.inject.incidents`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from mta.config.forms import SenderPattern
from mta.config.hosts import Network
from mta.config.schema import Config, Listener, User
from mta.inject.incidents import Incidents
from mta.smtp.address import Address, domain_to_ascii
from mta.smtp.peer import Identity, Peer, Rights
from mta.smtp.reply import Reply

_NEEDS_TLS: Final = Reply(530, "5.7.0", ("Must issue a STARTTLS command first",))
_NEEDS_LOGIN: Final = Reply(530, "5.7.0", ("Authentication required",))
_NO_RELAY: Final = Reply(550, "5.7.1", ("Relaying denied",))
_USER_IS_GONE: Final = Reply(530, "5.7.0", ("Authentication required: this user may not log in any more",))
_NOT_FROM_THERE: Final = Reply(550, "5.7.1", ("This user may not send from this address",))
_NOT_YOURS: Final = "Not allowed to send as this address"


class SenderList:
    """The senders that a client may use. Built once; a look-up costs the same however many there are."""

    __slots__ = ("_below", "_domains", "_mailboxes", "all")

    def __init__(self, patterns: Sequence[SenderPattern]) -> None:
        self.all = not patterns  # an empty list allows all
        self._mailboxes = frozenset(pattern.lower() for pattern in patterns if "@" in pattern)
        self._below = frozenset(pattern[2:] for pattern in patterns if pattern.startswith("*."))
        self._domains = frozenset(one for one in patterns if "@" not in one and not one.startswith("*."))

    def allows(self, sender: Address) -> bool:
        """Whether `sender` is in the list, or is the null sender. Quotes that a local part does not need, and case,
        make no other mailbox."""
        if self.all or not (sender.local or sender.domain):
            return True
        domain = (sender.domain if sender.domain.isascii() else domain_to_ascii(sender.domain)).lower()
        if domain in self._domains or f"{_unquoted(sender.local)}@{domain}".lower() in self._mailboxes:
            return True
        while self._below and "." in domain:
            domain = domain.partition(".")[2]
            if domain in self._below:
                return True
        return False


def _unquoted(local: str) -> str:
    return local[1:-1].replace("\\", "") if local.startswith('"') and local.endswith('"') else local


class ListenerPermissions:
    """The permissions of one listener's clients, by one configuration."""

    def __init__(self, listener: Listener, config: Config,
                 is_user: Callable[[Identity], bool] = lambda identity: True,
                 incidents: Incidents | None = None) -> None:
        """`is_user` tells whether a user may still log in: who is removed stops at once, not when its session ends."""
        incidents = incidents if incidents is not None else Incidents()
        self._tell = partial(_tell, incidents, str(listener.smtp))
        self._listener = listener
        self._users = config.users
        self._is_user = is_user
        self._any_sender = SenderList(())
        self._relay_senders = SenderList(listener.senders)
        self._user_senders = {name: SenderList(user.senders) for name, user in config.users.items()}

    def rights_of(self, peer: Peer) -> Rights:
        """The rights of a client."""
        listener = self._listener
        if listener.tls == "required" and peer.tls is None:
            return _Refused(peer, self._tell, _NEEDS_TLS, "TLS is required", at_mail=True)
        if peer.identity is not None:
            if not self._may_come_from(peer.identity.user, peer.address):  # a login was refused before; not so XCLIENT
                return _Refused(peer, self._tell, _NOT_FROM_THERE, "the user may not log in from this address",
                                at_mail=True)
            senders = self._user_senders.get(peer.identity.user, self._any_sender)
            return _UserRights(peer, self._tell, peer.identity, senders, self._is_user)
        if listener.auth == "required":
            return _Refused(peer, self._tell, _NEEDS_LOGIN, "a login is required", at_mail=True)
        if peer.address and contains(listener.relay_from, peer.address):
            return _NetworkRights(peer, self._tell, self._relay_senders)
        if listener.auth == "offered":
            return _Refused(peer, self._tell, _NEEDS_LOGIN, "not in relay_from, and has not logged in", at_mail=True)
        return _Refused(peer, self._tell, _NO_RELAY, "not in relay_from", at_mail=False)

    def may_log_in(self, user: str, address: str) -> str:
        """Why a user with the right password may not log in from there; empty when it may."""
        options: User | None = self._users.get(user)
        if options is None:
            return ""
        if not options.enabled:
            return "the user is not enabled"
        return "" if self._may_come_from(user, address) else "not from this address"

    def _may_come_from(self, user: str, address: str) -> bool:
        options = self._users.get(user)
        return options is None or not options.networks or not address or contains(options.networks, address)


def contains(networks: Sequence[Network], address: str) -> bool:
    """Whether an address is in one of the networks."""
    if not networks:
        return False
    ip = _parsed(address)
    return ip is not None and any(ip in network for network in networks)


@lru_cache(1000)
def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    """For who comes often."""
    try:
        return ip_address(address.partition("%")[0])
    except ValueError:
        return None


Tell = Callable[[Peer, str, str], None]
"""Told of a refusal: whose, what, and why."""


def _tell(incidents: Incidents, listener: str, peer: Peer, what: str, why: str) -> None:
    incidents.refused("mail", peer.address, listener, why, user=peer.identity.user if peer.identity is not None else "",
                      detail=what)


class _Told:
    """Tells of the first refusal of a client."""

    __slots__ = ("_peer", "_tell_of", "_told")

    def __init__(self, peer: Peer, tell: Tell) -> None:
        self._peer = peer
        self._tell_of = tell
        self._told = False

    def _tell(self, what: str, why: str) -> None:
        if not self._told:
            self._told = True
            self._tell_of(self._peer, what, why)


class _Refused(_Told):
    """Of a client that may send nothing."""

    __slots__ = ("_at_mail", "_reply", "_why")

    def __init__(self, peer: Peer, tell: Tell, reply: Reply, why: str, *, at_mail: bool) -> None:
        super().__init__(peer, tell)
        self._reply = reply
        self._why = why
        self._at_mail = at_mail

    def check_sender(self, sender: Address) -> Reply | None:
        """Refused, where a login or TLS could still help."""
        if not self._at_mail:
            return None
        self._tell(f"mail from <{sender.text}>", self._why)
        return self._reply

    def check_recipient(self, recipient: Address) -> Reply | None:
        """Refused, whoever it is."""
        self._tell(f"mail to <{recipient.text}>", self._why)
        return self._reply


class _NetworkRights(_Told):
    """Of a client in `relay_from`."""

    __slots__ = ("_senders",)

    def __init__(self, peer: Peer, tell: Tell, senders: SenderList) -> None:
        super().__init__(peer, tell)
        self._senders = senders

    def check_sender(self, sender: Address) -> Reply | None:
        """Those that the list allows. Hot path."""
        if self._senders.all or self._senders.allows(sender):
            return None
        self._tell(f"mail from <{sender.text}>", "the sender is not in senders")
        return Reply(550, "5.7.1", (_NOT_YOURS,))

    def check_recipient(self, recipient: Address) -> Reply | None:
        """All. Hot path."""
        return None


class _UserRights(_NetworkRights):
    """Of a user who has logged in."""

    __slots__ = ("_identity", "_is_user")

    def __init__(self, peer: Peer, tell: Tell, identity: Identity, senders: SenderList,
                 is_user: Callable[[Identity], bool]) -> None:
        super().__init__(peer, tell, senders)
        self._identity = identity
        self._is_user = is_user

    def check_sender(self, sender: Address) -> Reply | None:
        """Those that the list allows, as long as the user is one."""
        if not self._is_user(self._identity):
            self._tell(f"mail from <{sender.text}>", "the user may not log in any more")
            return _USER_IS_GONE
        return super().check_sender(sender)
