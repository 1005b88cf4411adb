"""What every command does in each state of a session: all rules on the order of commands are in this table.

Theory and states are in `mta.smtp.server`.
"""

from __future__ import annotations

from typing import Final

from mta.smtp import replies
from mta.smtp.conversation import (
    AUTH,
    CHUNK,
    CHUNKED,
    CLOSED,
    CONTENT,
    MAIL,
    PAUSED,
    RCPT,
    READY,
    START,
    TLS,
    Conversation,
    Handler,
    State,
)
from mta.smtp.identifying import Identifying
from mta.smtp.receiving import Receiving


def _always(reply: bytes) -> Handler:
    """The handler of a command that is refused whatever its argument is."""
    return lambda server, argument: server._refuse(reply)


def _rcpt_refused(reply: bytes) -> Handler:
    """RCPT without MAIL: mostly the wake of a MAIL that was refused, and counted, in the same group. So no error."""
    return lambda server, argument: None if server._starts_no_message() else server._replies.append(reply)


def _data_refused(reply: bytes) -> Handler:
    """DATA out of place, likewise; but who sends content behind it is cut off, or it would be read as commands."""
    refused = _rcpt_refused(reply)
    return lambda server, argument: server._close(replies.OUT_OF_TURN) if server._more else refused(server, argument)


def _out_of_place(verb: bytes, reply: bytes) -> Handler:
    """The handler of an extension's command where it cannot be said now; what is not offered never can."""
    return lambda server, argument: server._refuse(reply if verb in server._offers.verbs else replies.NOT_HERE)


_EVERYWHERE: dict[bytes, Handler] = {
    b"EHLO": Conversation._do_ehlo,
    b"HELO": Conversation._do_helo,
    b"RSET": Conversation._do_rset,
    b"NOOP": Conversation._do_noop,
    b"HELP": Conversation._do_help,
    b"VRFY": Conversation._do_vrfy,
    b"QUIT": Conversation._do_quit,
    b"BDAT": Receiving._do_bdat,
    **dict.fromkeys((b"EXPN", b"ETRN", b"TURN", b"ATRN", b"SEND", b"SOML", b"SAML"), _always(replies.NOT_HERE)),
}
_OUTSIDE: dict[bytes, Handler] = _EVERYWHERE | {b"XCLIENT": Identifying._do_xclient}
_INSIDE: dict[bytes, Handler] = _EVERYWHERE | {
    b"MAIL": _always(replies.NESTED),
    **{verb: _out_of_place(verb, replies.IN_TRANSACTION) for verb in (b"STARTTLS", b"AUTH", b"XCLIENT")},
}
HANDLERS: Final[dict[State, dict[bytes, Handler]]] = {
    START: _OUTSIDE | {
        **{verb: _out_of_place(verb, replies.EHLO_FIRST) for verb in (b"STARTTLS", b"AUTH")},
        b"MAIL": _always(replies.EHLO_FIRST),
        b"RCPT": _rcpt_refused(replies.EHLO_FIRST),
        b"DATA": _data_refused(replies.EHLO_FIRST),
    },
    READY: _OUTSIDE | {
        b"STARTTLS": Identifying._do_starttls,
        b"AUTH": Identifying._do_auth,
        b"MAIL": Receiving._do_mail,
        b"RCPT": _rcpt_refused(replies.MAIL_FIRST),
        b"DATA": _data_refused(replies.MAIL_FIRST),
    },
    MAIL: _INSIDE | {b"RCPT": Receiving._do_rcpt, b"DATA": _data_refused(replies.NO_RECIPIENT)},
    RCPT: _INSIDE | {b"RCPT": Receiving._do_rcpt, b"DATA": Receiving._do_data},
    CHUNKED: _INSIDE | {b"RCPT": _always(replies.CHUNKS_ONLY), b"DATA": _always(replies.CHUNKS_ONLY)},
    **{state: {} for state in (CONTENT, CHUNK, AUTH, PAUSED, TLS, CLOSED)},
}  # fmt: skip
