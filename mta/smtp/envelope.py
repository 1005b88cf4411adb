"""The envelope of an incoming message, and the parameters of MAIL and RCPT that shape it.

SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), RET, ENVID, NOTIFY and ORCPT (RFC 3461 4). A parameter that is
malformed or given twice is `501 5.5.4`, one that was not offered `555 5.5.4`. ENVID and ORCPT are kept in xtext, as
received, for whom they are passed on to; what they hide is checked now, while there is somebody to tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mta.queue.records import NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER, NOTIFY_SUCCESS, Recipient
from mta.smtp.reply import Reply
from mta.smtp.xtext import decode, decode_orcpt

ENVID_LIMIT = 100  # octets, RFC 3461 4.4
ORCPT_LIMIT = 500  # octets, RFC 3461 4.2
SIZE_DIGITS = 20  # RFC 1870 5


@dataclass(slots=True)
class Envelope:
    """The envelope of one message, checked."""

    sender: str = ""  # "" is the null sender
    recipients: list[Recipient] = field(default_factory=list)
    size: int = 0  # as declared, 0 when it was not
    eight_bit: bool = False  # BODY=8BITMIME
    smtputf8: bool = False
    ret: str = ""  # "FULL", "HDRS" or not given
    envid: str | None = None  # as received, in xtext
    helo: str = ""
    esmtp: bool = False
    dotless: bool = field(default=False, compare=False)  # no line of the content begins with a dot, as was seen


class ParameterError(Exception):
    """A parameter that is wrong, with the reply that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, "5.5.4", (text,))


def read_mail_parameters(envelope: Envelope, text: bytes) -> None:
    """Read what follows the path of MAIL, ` KEY=value KEY ...`, into the envelope. Raises ParameterError."""
    for key, value in _parameters(text).items():
        if key == b"SIZE":
            if not value.isdigit() or len(value) > SIZE_DIGITS:
                raise _bad_value(key)
            envelope.size = int(value)
        elif key == b"BODY":
            kind = value.upper()
            if kind not in (b"7BIT", b"8BITMIME"):
                raise _bad_value(key)
            envelope.eight_bit = kind == b"8BITMIME"
        elif key == b"SMTPUTF8":
            if value:
                raise _bad_value(key)
            envelope.smtputf8 = True
        elif key == b"RET":
            ret = value.upper()
            if ret not in (b"FULL", b"HDRS"):
                raise _bad_value(key)
            envelope.ret = ret.decode()
        elif key == b"ENVID":
            envelope.envid = _envid(value)
        else:
            raise _unknown(key)


def read_rcpt_parameters(recipient: Recipient, text: bytes, *, utf8: bool) -> None:
    """Read what follows the path of RCPT into the recipient. `utf8`: with SMTPUTF8. Raises ParameterError."""
    for key, value in _parameters(text).items():
        if key == b"NOTIFY":
            recipient.notify = _notify(value)
        elif key == b"ORCPT":
            recipient.orcpt = _orcpt(value, utf8=utf8)
        else:
            raise _unknown(key)


def _parameters(text: bytes) -> dict[bytes, bytes]:
    """The parameters by keyword in upper case; the value is empty when there is none."""
    if not text.startswith(b" "):
        raise ParameterError(501, "Text behind the address")
    given: dict[bytes, bytes] = {}
    for item in text.split(b" "):
        if item:
            key, equals, value = item.partition(b"=")
            key = key.upper()
            if key in given:
                raise ParameterError(501, f"{_shown(key)} is given twice")
            if equals and not value:
                raise _bad_value(key)
            given[key] = value
    return given


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
        orcpt = value.decode("utf-8" if utf8 else "ascii")
        decode_orcpt(orcpt)
    except ValueError:
        raise _bad_value(b"ORCPT") from None
    if len(value) > ORCPT_LIMIT:
        raise _bad_value(b"ORCPT")
    return orcpt


def _bad_value(key: bytes) -> ParameterError:
    return ParameterError(501, f"Bad value of {_shown(key)}")


def _unknown(key: bytes) -> ParameterError:
    return ParameterError(555, f"Parameter {_shown(key)} is not known")


def _shown(key: bytes) -> str:
    return key[:40].decode("ascii", "replace")
