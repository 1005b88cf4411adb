"""The envelope of an incoming message, and the parameters of MAIL and RCPT that shape it.

SIZE (RFC 1870), BODY (RFC 6152, 3030), SMTPUTF8 (RFC 6531), RET, ENVID, NOTIFY and ORCPT (RFC 3461 4), AUTH (RFC 4954
5), REQUIRETLS (RFC 8689), HOLDFOR and HOLDUNTIL (RFC 4865), MT-PRIORITY (RFC 6710), BY (RFC 2852). A parameter that is
malformed or given twice is `501 5.5.4`, one that was not offered `555 5.5.4`. ENVID and ORCPT are kept in xtext, as
received, for whom they are passed on to; what they hide is checked now, while there is somebody to tell.

Decisions where the standards leave room:

* AUTH is checked and then forgotten, as RFC 4954 5 has it for clients that are not trusted to speak for others.
* A hold that is longer than offered is `501 5.5.4`, and so is HOLDUNTIL in the past: somebody's clock is wrong.
  HOLDFOR=0 is none.
* BY with R and a time that is shorter than offered is `555 5.5.4` (RFC 2852 4.1.2), and one that ends before the hold
  does is `501 5.5.4`: such a message could only come back.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from mta.queue.records import (
    BINARY,
    EIGHT_BIT,
    NOTIFY_DELAY,
    NOTIFY_FAILURE,
    NOTIFY_NEVER,
    NOTIFY_SUCCESS,
    REQUIRE_TLS,
    SMTPUTF8,
    Recipient,
)
from mta.smtp.address import AddressError, parse_address
from mta.smtp.extensions import IN_FILES, Offers
from mta.smtp.reply import Reply
from mta.smtp.xtext import decode, decode_orcpt, orcpt_in_unicode

ENVID_LIMIT = 100  # octets, RFC 3461 4.4
ORCPT_LIMIT = 500  # octets, RFC 3461 4.2
SIZE_DIGITS = 20  # RFC 1870 5


@dataclass(slots=True)
class Asked:
    """What few senders ask for."""

    hold: str = ""  # as asked, `for;3600` or `until;2030-01-02T03:04:05Z`, for notifications
    hold_s: float = 0.0  # how long from now
    by_s: int | None = None  # time to deliver, which may be over already
    by_mode: str = ""  # "R", "N", "RT" or "NT"
    priority: int | None = None  # MT-PRIORITY, -9 to 9


@dataclass(slots=True)
class Envelope:
    """The envelope of one message, checked."""

    sender: str = ""  # "" is the null sender
    recipients: list[Recipient] = field(default_factory=list)
    size: int = 0  # as declared, 0 when it was not
    flags: int = 0  # as those of a message: `mta.queue.records`
    ret: str = ""  # "FULL", "HDRS" or not given
    envid: str | None = None  # as received, in xtext
    helo: str = ""
    esmtp: bool = False
    asked: Asked | None = None

    def ask(self) -> Asked:
        """`asked`, to be filled in."""
        if self.asked is None:
            self.asked = Asked()
        return self.asked


class ParameterError(Exception):
    """A parameter that is wrong, with the reply that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, "5.5.4", (text,))


def read_mail_parameters(envelope: Envelope, text: bytes, offers: Offers = IN_FILES) -> None:
    """Read what follows the path of MAIL, ` KEY=value KEY ...`, into the envelope. Raises ParameterError."""
    for key, value in _parameters(text, offers.mail).items():
        if key == b"SIZE":
            envelope.size = _number(key, value, SIZE_DIGITS)
        elif key == b"BODY":
            _read_body(envelope, value, offers)
        elif key == b"SMTPUTF8":
            _no_value(key, value)
            envelope.flags |= SMTPUTF8
        elif key == b"RET":
            ret = value.upper()
            if ret not in (b"FULL", b"HDRS"):
                raise _bad_value(key)
            envelope.ret = ret.decode()
        elif key == b"ENVID":
            envelope.envid = _envid(value)
        elif key == b"AUTH":
            _check_auth(value)
        elif key == b"REQUIRETLS":
            _no_value(key, value)
            envelope.flags |= REQUIRE_TLS
        elif key in (b"HOLDFOR", b"HOLDUNTIL"):
            _read_hold(envelope.ask(), key, value, offers)
        elif key == b"MT-PRIORITY":
            if re.fullmatch(rb"-?[1-9]|0", value) is None:
                raise _bad_value(key)
            envelope.ask().priority = int(value)
        else:
            assert key == b"BY", key
            _read_by(envelope.ask(), value, offers)
    asked = envelope.asked
    if asked is not None and asked.by_s is not None and asked.by_mode[0] == "R" and asked.by_s <= asked.hold_s:
        raise ParameterError(501, "BY is over before the message is released")


def read_rcpt_parameters(recipient: Recipient, text: bytes, *, utf8: bool, offers: Offers = IN_FILES) -> None:
    """Read what follows the path of RCPT into the recipient. `utf8`: with SMTPUTF8. Raises ParameterError."""
    for key, value in _parameters(text, offers.rcpt).items():
        if key == b"NOTIFY":
            recipient.notify = _notify(value)
        else:
            assert key == b"ORCPT", key
            recipient.orcpt = _orcpt(value, utf8=utf8)


def _parameters(text: bytes, offered: Collection[bytes]) -> dict[bytes, bytes]:
    """The parameters by keyword in upper case; the value is empty when there is none."""
    if not text.startswith(b" "):
        raise ParameterError(501, "Text behind the address")
    given: dict[bytes, bytes] = {}
    for item in text.split(b" "):
        if item:
            key, equals, value = item.partition(b"=")
            key = key.upper()
            if key not in offered:
                raise ParameterError(555, f"Parameter {_shown(key)} is not known")
            if key in given:
                raise ParameterError(501, f"{_shown(key)} is given twice")
            if equals and not value:
                raise _bad_value(key)
            given[key] = value
    return given


def _read_body(envelope: Envelope, value: bytes, offers: Offers) -> None:
    kind = value.upper()
    if kind == b"BINARYMIME" and offers.binary:
        envelope.flags |= BINARY | EIGHT_BIT
    elif kind == b"8BITMIME":
        envelope.flags |= EIGHT_BIT
    elif kind != b"7BIT":
        raise _bad_value(b"BODY")


def _check_auth(value: bytes) -> None:
    """`<>`, or an address in xtext (RFC 4954 5)."""
    if value == b"<>":
        return
    try:
        parse_address(decode(value.decode("ascii")))
    except (ValueError, AddressError):
        raise _bad_value(b"AUTH") from None


# RFC 3339 5.6, without leap seconds. Python cuts off what is beyond microseconds; Go and .NET write that.
_DATE_TIME: Final = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,20})?(?:Z|[+-]\d\d:\d\d)", re.IGNORECASE)


def _read_hold(asked: Asked, key: bytes, value: bytes, offers: Offers) -> None:
    """HOLDFOR=seconds or HOLDUNTIL=date and time (RFC 4865 4); one of them."""
    if asked.hold:
        raise ParameterError(501, "HOLDFOR and HOLDUNTIL exclude each other")
    if key == b"HOLDFOR":
        hold_s: float = _number(key, value, 9)
        asked.hold = f"for;{value.decode()}"
    else:
        if _DATE_TIME.fullmatch(value) is None:
            raise _bad_value(key)
        text = value.decode().upper()
        try:
            hold_s = datetime.fromisoformat(text).timestamp() - offers.now_s()
        except (ValueError, OverflowError):
            raise _bad_value(key) from None
        if hold_s <= 0:
            raise ParameterError(501, "HOLDUNTIL is in the past")
        asked.hold = f"until;{text}"
    if hold_s > offers.future_release_s:
        raise ParameterError(501, f"{_shown(key)} is more than {offers.future_release_s} seconds from now")
    asked.hold_s = hold_s


_BY: Final = re.compile(rb"([+-]?\d{1,9});([NR]T?)")


def _read_by(asked: Asked, value: bytes, offers: Offers) -> None:
    """BY=seconds;mode (RFC 2852 4)."""
    match = _BY.fullmatch(value.upper())
    if match is None:
        raise _bad_value(b"BY")
    seconds, mode = int(match[1]), match[2].decode()
    if mode[0] == "R":
        if seconds <= 0:
            raise _bad_value(b"BY")
        if seconds < offers.deliver_by_s:
            raise ParameterError(555, f"BY is less than {offers.deliver_by_s} seconds")
    asked.by_s, asked.by_mode = seconds, mode


def _number(key: bytes, value: bytes, digits: int) -> int:
    if not value.isdigit() or len(value) > digits:
        raise _bad_value(key)
    return int(value)


def _no_value(key: bytes, value: bytes) -> None:
    if value:
        raise _bad_value(key)


_NOTIFY = {b"NEVER": NOTIFY_NEVER, b"SUCCESS": NOTIFY_SUCCESS, b"FAILURE": NOTIFY_FAILURE, b"DELAY": NOTIFY_DELAY}


def _notify(value: bytes) -> int:
    """The flags of a NOTIFY value: NEVER alone, or a list of the others, each once (RFC 3461 4.1)."""
    notify = 0
    for name in value.upper().split(b","):
        flag = _NOTIFY.get(name, 0)
        if not flag or notify & (flag | NOTIFY_NEVER) or (notify and flag == NOTIFY_NEVER):
            raise _bad_value(b"NOTIFY")
        notify |= flag
    return notify


def _envid(value: bytes) -> str:
    try:
        envid = value.decode("ascii")
        decode(envid)
    except ValueError:
        raise _bad_value(b"ENVID") from None
    if not 0 < len(envid) <= ENVID_LIMIT:
        raise _bad_value(b"ENVID")
    return envid


def _orcpt(value: bytes, *, utf8: bool) -> str:
    try:
        orcpt = orcpt_in_unicode(value.decode("utf-8" if utf8 else "ascii"))
        decode_orcpt(orcpt)
    except ValueError:
        raise _bad_value(b"ORCPT") from None
    if len(value) > ORCPT_LIMIT:
        raise _bad_value(b"ORCPT")
    return orcpt


def _bad_value(key: bytes) -> ParameterError:
    return ParameterError(501, f"Bad value of {_shown(key)}")


def _shown(key: bytes) -> str:
    return key[:40].decode("ascii", "replace")
