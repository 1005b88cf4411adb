"""What the server offers, and what it takes: one table, so that the two are never different.

A session has `Offers`. The answers to EHLO and HELP are written from them, and the machine knows no verb and takes no
parameter that is not in them. Some extensions ask something of whoever carries the message on: those are offered only
if that one says that it honours them (`honours`), and it says so beside the code that does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from mta.smtp.peer import Peer
from mta.smtp.replies import reply


class Extension(NamedTuple):
    """One extension of SMTP."""

    keyword: str
    source: str  # number of its RFC
    verbs: tuple[str, ...] = ()
    mail: tuple[str, ...] = ()  # parameters of MAIL
    rcpt: tuple[str, ...] = ()  # parameters of RCPT
    beyond: bool = False  # asks something of whoever carries the message on


EXTENSIONS: Final = (
    Extension("PIPELINING", "2920"),
    Extension("SIZE", "1870", mail=("SIZE",)),
    Extension("8BITMIME", "6152", mail=("BODY",), beyond=True),
    Extension("SMTPUTF8", "6531", mail=("SMTPUTF8",), beyond=True),
    Extension("ENHANCEDSTATUSCODES", "2034"),
    Extension("CHUNKING", "3030", verbs=("BDAT",)),
    Extension("BINARYMIME", "3030", mail=("BODY",), beyond=True),
    Extension("DSN", "3461", mail=("RET", "ENVID"), rcpt=("NOTIFY", "ORCPT"), beyond=True),
    Extension("STARTTLS", "3207", verbs=("STARTTLS",)),
    Extension("AUTH", "4954", verbs=("AUTH",), mail=("AUTH",)),
    Extension("REQUIRETLS", "8689", mail=("REQUIRETLS",), beyond=True),
    Extension("FUTURERELEASE", "4865", mail=("HOLDFOR", "HOLDUNTIL"), beyond=True),
    Extension("MT-PRIORITY", "6710", mail=("MT-PRIORITY",), beyond=True),
    Extension("DELIVERBY", "2852", mail=("BY",), beyond=True),
    Extension("LIMITS", "9422"),
    Extension("XCLIENT", "", verbs=("XCLIENT",)),
    Extension("HELP", "5321"),
)
BEYOND: Final = frozenset(extension.keyword for extension in EXTENSIONS if extension.beyond)
BASIC_VERBS: Final = ("EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "HELP", "QUIT")


class Offers:
    """What a client is offered."""

    __slots__ = ("_clock", "_hostname", "_lines", "binary", "deliver_by_s", "future_release_s", "help", "keywords",
                 "mail", "mechanisms", "rcpt", "verbs")  # fmt: skip

    def __init__(
        self, hostname: str, values: dict[str, str], future_release_s: int = 0, deliver_by_s: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`values`: what is offered by keyword, with what stands behind the keyword. The others are those of
        `mta.smtp.settings.ServerSettings`."""
        extensions = [extension for extension in EXTENSIONS if extension.keyword in values]
        self._hostname = hostname
        self._lines = tuple(f"{e.keyword} {values[e.keyword]}".rstrip() for e in extensions)
        self._clock = clock
        self.future_release_s = future_release_s
        self.deliver_by_s = deliver_by_s
        self.keywords = frozenset(values)
        self.binary = "BINARYMIME" in values
        self.mechanisms = tuple(values.get("AUTH", "").split())
        self.verbs = frozenset(verb.encode() for e in extensions for verb in e.verbs)
        self.mail = frozenset(name.encode() for e in extensions for name in e.mail)
        self.rcpt = frozenset(name.encode() for e in extensions for name in e.rcpt)
        verbs = " ".join((*BASIC_VERBS, *(verb for e in extensions for verb in e.verbs)))
        sources = sorted({int(extension.source) for extension in extensions if extension.source})
        self.help = reply(214, "2.0.0", verbs, f"RFC {', '.join(map(str, sources))}")

    def now_s(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def ehlo(self) -> bytes:
        """The answer to EHLO, just now: FUTURERELEASE tells a latest date."""
        lines = self._lines
        if "FUTURERELEASE" in self.keywords:
            latest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock() + self.future_release_s))
            lines = tuple(f"{line} {latest}" if line.startswith("FUTURERELEASE ") else line for line in lines)
        return reply(250, "", self._hostname, *lines)


EVERYWHERE: Final = frozenset(("8BITMIME", "SMTPUTF8", "DSN"))
"""Those beyond that make sense whichever door an envelope comes by: not of listeners alone."""

IN_FILES: Final = Offers("", {"SIZE": ""} | dict.fromkeys(EVERYWHERE, ""))
"""What files with envelopes in them may ask for, as no EHLO told them."""


def choose(values: dict[str, str], peer: Peer, mechanisms: Iterable[str], *, auth_without_tls: bool) -> dict[str, str]:
    """Of all that a listener could offer what it offers this client."""
    chosen = dict(values)
    if peer.tls is None:
        chosen.pop("REQUIRETLS", None)  # RFC 8689 4.1: under TLS only
    else:
        chosen.pop("STARTTLS", None)  # RFC 3207 4.2: not again
    if peer.tls is not None or auth_without_tls:
        bound = peer.tls is not None and bool(peer.tls.bindings)
        usable = [name for name in mechanisms if bound or not name.endswith("-PLUS")]
        if usable:
            chosen["AUTH"] = " ".join(usable)
    if peer.may_xclient:
        chosen["XCLIENT"] = "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
    return chosen
