"""Who is at the other end of an incoming session, and who says what it may send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from mta.smtp.address import Address
from mta.smtp.reply import Reply

Way: TypeAlias = Literal["password", "scram", "certificate", "socket", "xclient"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, and how it proved to be one."""

    user: str
    via: Way


@dataclass(frozen=True, slots=True)
class Tls:
    """The encryption of a session."""

    version: str  # such as "TLSv1.3"
    cipher: str
    bindings: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Channel binding data by name: `tls-server-end-point` (RFC 5929 4), `tls-exporter` (RFC 9266). Without any there
    is no SCRAM-SHA-256-PLUS."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The client of a session, as far as it is known. A session gets another one when it learns more."""

    address: str  # empty for a Unix socket
    port: int
    tls: Tls | None = None
    identity: Identity | None = None
    may_xclient: bool = False  # it is trusted to speak for others (XCLIENT)
    name: str = ""  # the client's host name, when somebody trusted said it


class Rights(Protocol):
    """What one client may send. A refusal is a reply; 4xx means that it may come again, and is no error of its."""

    def check_sender(self, sender: Address) -> Reply | None:
        """Whether it may send in the name of `sender`, which may be the null sender. Hot path."""

    def check_recipient(self, recipient: Address) -> Reply | None:
        """Whether it may send to `recipient`. Hot path."""


class Permissions(Protocol):
    """Says what a client may send: one place for all rules on who may relay."""

    def rights_of(self, peer: Peer) -> Rights:
        """The rights of a client. Asked before its first MAIL, and again when it has become another `Peer`."""


_DENIED: Final = Reply(550, "5.7.1", ("Relaying denied",))


class NoRights:
    """Those of a client that nobody vouches for: every recipient is refused, `postmaster` too, as this is no host that
    takes mail for itself."""

    def check_sender(self, sender: Address) -> Reply | None:
        """Any: the refusal comes with the recipient, as for every relay."""
        return None

    def check_recipient(self, recipient: Address) -> Reply | None:
        """None at all."""
        return _DENIED


class AllRights:
    """Those of a client that may send anything to anybody."""

    def check_sender(self, sender: Address) -> Reply | None:
        """Any."""
        return None

    def check_recipient(self, recipient: Address) -> Reply | None:
        """Any."""
        return None


class SameForAll:
    """Permissions that do not look at the client. Not for a listener."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    def rights_of(self, peer: Peer) -> Rights:
        """Always the same."""
        return self._rights


NO_RIGHTS: Final[Rights] = NoRights()
ALL_RIGHTS: Final[Rights] = AllRights()
CLOSED_TO_ALL: Final[Permissions] = SameForAll(NO_RIGHTS)
