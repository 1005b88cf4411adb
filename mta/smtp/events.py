"""What the server machine tells its caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from mta.smtp.envelope import Envelope
from mta.smtp.peer import Peer
from mta.smtp.sasl import Attempt


@dataclass(slots=True)
class MessageReceived:
    """A whole message has come. `answer` it."""

    envelope: Envelope
    content: bytes = field(repr=False)  # not stuffed, CRLF line ends, without NUL; ends with CRLF unless it is empty


@dataclass(slots=True)
class StartTls:
    """Write the output, do the handshake on the bare connection, then say `tls_started`. When it fails nothing is left
    to be said: close, and say `gone`."""


@dataclass(slots=True)
class Authenticate:
    """Somebody wants to be believed. Say `authenticated`, `refused` or, to a ScramAttempt, `keys_found`."""

    attempt: Attempt


@dataclass(slots=True)
class PeerChanged:
    """The client said for whom it speaks (XCLIENT), and `Server.peer` is that other one now. The session goes on."""

    before: Peer


@dataclass(slots=True)
class TakesLong:
    """A group of commands takes long. Let others have their turn, then say `go_on`; do not read before."""


@dataclass(slots=True)
class Closed:
    """The session is over. Write the output and close."""

    by_client: bool  # it said QUIT; else something was wrong with it, and it may still be sending


ServerEvent: TypeAlias = MessageReceived | StartTls | Authenticate | PeerChanged | TakesLong | Closed
