"""Who the client is, as it shows itself in a session: STARTTLS, AUTH and XCLIENT.

The theory, and the decisions where the standards leave room, are in `mta.smtp.server`.
"""

from __future__ import annotations

from dataclasses import replace

from mta.smtp import replies, sasl
from mta.smtp.conversation import AUTH, CLOSED, PAUSED, READY, SKIP_LIMIT, START, TLS, Conversation
from mta.smtp.events import Authenticate, PeerChanged, StartTls
from mta.smtp.login import Login, begin
from mta.smtp.peer import Identity
from mta.smtp.xclient import AttributeValueError, read_attributes

RESPONSE_LIMIT = 12_288  # octets of a line of AUTH, RFC 4954 4


class Identifying(Conversation):
    """Lets the client become another peer."""

    __slots__ = ()

    def _do_starttls(self, argument: bytes) -> None:
        """STARTTLS (RFC 3207 4)."""
        if self.peer.tls is not None:
            self._refuse(replies.TLS_ALREADY)
        elif b"STARTTLS" not in self._offers.verbs:
            self._refuse(replies.NOT_HERE)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        elif argument.strip(b" "):
            self._refuse(replies.NO_ARGUMENT)
        elif not self._starts_no_message():
            self._replies.append(replies.START_TLS)
            self._enter(TLS)
            self._events.append(StartTls())

    def _do_auth(self, argument: bytes) -> None:
        """AUTH (RFC 4954 4)."""
        name, _, initial = argument.strip(b" ").partition(b" ")
        if self.peer.identity is not None:
            self._refuse(replies.AUTH_ALREADY)
        elif b"AUTH" not in self._offers.verbs:
            missing_tls = self._settings.mechanisms and self.peer.tls is None
            self._refuse(replies.AUTH_NEEDS_TLS if missing_tls else replies.NOT_HERE)
        elif not self._esmtp:
            self._refuse(replies.AUTH_NEEDS_EHLO)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        elif not name:
            self._refuse(replies.AUTH_SYNTAX)
        else:
            mechanism = name.decode("ascii", "replace").upper()
            self._login = begin(mechanism, self._offers, self.peer, self._settings)
            if self._login is None:
                self._refuse(replies.AUTH_UNKNOWN)
            elif initial:
                self._responded(self._login, b"" if initial == b"=" else initial)
            else:
                self._challenge(self._login.first_challenge)

    def _take_response(self, data: bytes, position: int) -> int:
        """A response of AUTH begins at `position`: the offset behind it, or -1 when it is not complete."""
        end = data.find(b"\r\n", position)
        if end < 0:
            rest = data[position:]
            if b"\n" in rest:
                self._close(replies.BARE_LF)
                rest = b""
            elif self._skipped or len(rest) > RESPONSE_LIMIT + 1:
                self._skipped += len(rest)
                rest = b"\r" if rest.endswith(b"\r") else b""
                if self._skipped > SKIP_LIMIT:
                    self._close(replies.LINE_WITHOUT_END)
            self._rest = rest
            return -1
        line = data[position:end]
        if b"\n" in line:
            self._close(replies.BARE_LF)
        elif end + 2 < len(data):
            self._close(replies.OUT_OF_TURN)
        elif self._skipped or len(line) > RESPONSE_LIMIT:
            self._skipped = 0
            self._login_failed(replies.AUTH_TOO_LONG)
        elif line == b"*":
            self._refuse(replies.AUTH_CANCELLED, counts=False)
            if self.state != CLOSED:
                self._login_over()
        else:
            assert self._login is not None
            self._responded(self._login, line)
        return end + 2

    def _challenge(self, text: bytes) -> None:
        self._replies.append(b"334 " + sasl.encode(text) + b"\r\n")
        self._enter(AUTH)

    def _responded(self, login: Login, line: bytes) -> None:
        """The client gives a response."""
        try:
            answer = login.respond(line)
        except sasl.MalformedResponseError as error:
            self._login_failed(replies.bad_response(str(error)))
            return
        if isinstance(answer, bytes):
            self._challenge(answer)
        elif isinstance(answer, Identity):
            self._login_done(answer)
        else:
            self._enter(PAUSED)
            self._events.append(Authenticate(answer))

    def _login_done(self, identity: Identity) -> None:
        self._become(replace(self.peer, identity=identity))
        self._failures = 0
        self._replies.append(replies.AUTHENTICATED)
        self._login_over()

    def _login_failed(self, reply: bytes, *, counts: bool = True) -> None:
        self._failures += counts
        if self._failures > self._settings.auth_failures:
            self._close(replies.TOO_MANY_LOGINS)
            return
        self._refuse(reply, counts=counts)
        if self.state != CLOSED:
            self._login_over()

    def _login_over(self) -> None:
        """Forget the exchange."""
        self._login = None
        self._enter(READY)

    def _do_xclient(self, argument: bytes) -> None:
        """XCLIENT: the session begins anew, for another client."""
        if not self.peer.may_xclient:
            self._refuse(replies.XCLIENT_REFUSED)
        elif self._more:
            self._close(replies.OUT_OF_TURN)
        else:
            before = self.peer
            try:
                peer, helo = read_attributes(argument, before, self._helo)
            except AttributeValueError as error:
                self._refuse(replies.bad_xclient(str(error)))
                return
            if self._starts_no_message():
                return
            self._become(peer)
            self._helo = helo
            self._esmtp = False
            self.greet()
            self._enter(START)
            self._events.append(PeerChanged(before))


def is_auth(line: bytes) -> bool:
    """Whether a line that is longer than commands may be is one, as AUTH may have a long initial response."""
    return line[:5].upper() == b"AUTH " and len(line.removesuffix(b"\r")) <= RESPONSE_LIMIT
