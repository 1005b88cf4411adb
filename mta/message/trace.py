"""The header lines that an MTA adds: Received, Date and Message-ID.

Dates are UTC with a numeric zone. What a client says of itself reaches a header only if it looks like a host name or
an address literal, so that nobody writes our trace lines for us. Every line ends with CRLF and is far below the 998
bytes of RFC 5322 2.1.1. On the hot path: about 3 µs for the three of them.
"""

from __future__ import annotations

import functools
import re
import time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_])?|\[[A-Za-z0-9.:-]{1,60}\]")


@functools.lru_cache(maxsize=64)
def _date_of(second: int) -> str:
    parts = time.gmtime(second)
    return (
        f"{_DAYS[parts.tm_wday]}, {parts.tm_mday:02d} {_MONTHS[parts.tm_mon - 1]} {parts.tm_year:04d} "
        f"{parts.tm_hour:02d}:{parts.tm_min:02d}:{parts.tm_sec:02d} +0000"
    )


def date(time_us: int) -> str:
    """A date-time of RFC 5322 3.3: `Mon, 02 Jan 2006 15:04:05 +0000`."""
    return _date_of(time_us // 1_000_000)


def message_id(queue_id: str, hostname: str) -> str:
    """A Message-ID with its brackets. The text form of our message id is unique on this host and holds the time."""
    return f"<{queue_id}@{hostname}>"


@functools.lru_cache(maxsize=1024)
def from_clause(helo: str, address: str) -> str:
    """`from helo ([192.0.2.1])` of RFC 5321 4.4. A name that is none becomes `unknown`."""
    name = helo if _HOST.fullmatch(helo) else "unknown"
    literal = f"IPv6:{address}" if ":" in address else address
    return f"from {name} ([{literal}])\r\n\t"


@functools.lru_cache(maxsize=16)
def protocol(esmtp: bool, tls: bool = False, authenticated: bool = False, smtputf8: bool = False) -> str:
    """The name after `with` (RFC 3848; RFC 6531 4.3 for SMTPUTF8)."""
    if not esmtp:
        return "SMTP"
    name = "UTF8SMTP" if smtputf8 else "ESMTP"
    return f"{name}{'S' if tls else ''}{'A' if authenticated else ''}"


def received(
    source: str, hostname: str, method: str, queue_id: str, recipient: str, time_us: int, priority: int | None = None
) -> str:
    """A Received line (RFC 5321 4.4).

    `source` is a `from_clause`, or empty for mail that came in no session. `method` is what stands between our name
    and the id: `with ESMTP`, or a comment. `recipient` is empty unless it is the only one: more of them would tell
    each about the others (RFC 5321 7.2). `priority` is an MT-PRIORITY that was asked for (RFC 6710 4.4).
    """
    target = f"\r\n\tfor <{recipient}>" if recipient else ""
    if priority is not None:
        target = f"{target}\r\n\tpriority {priority}"
    return f"Received: {source}by {hostname} {method} id {queue_id}{target};\r\n\t{date(time_us)}\r\n"
