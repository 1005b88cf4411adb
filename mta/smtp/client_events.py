"""What the client machine tells its caller, and the names of what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mta.smtp.reply import Reply
from mta.smtp.transaction import Transaction

Phase: TypeAlias = Literal[
    "greeting", "ehlo", "helo", "starttls", "handshake", "ready", "rset", "mail", "rcpt", "data", "body", "dot",
    "quit", "closed",
]  # fmt: skip


@dataclass(slots=True)
class Greeted:
    """The host's greeting, 2xx."""

    reply: Reply


@dataclass(slots=True)
class StartTls:
    """Do the TLS handshake now, then call `tls_established`, or `lost` when it failed."""


@dataclass(slots=True)
class Ready:
    """The session is open and takes transactions."""


@dataclass(slots=True)
class Refused:
    """The host gives no session. Close the connection."""

    reply: Reply  # the host's; or ours (`reply.local`) when TLS is required and not offered
    phase: Phase


@dataclass(slots=True)
class Finished:
    """A transaction is over, for better or worse."""

    transaction: Transaction


ClientEvent: TypeAlias = Greeted | StartTls | Ready | Refused | Finished
