"""Injects the campaign by SMTP over a few sessions, as an application would: plain sockets in threads, pipelining.

A message that is refused for now (disk full, stopping) is offered again; one whose session is lost before the final
dot as well. When the reply to the final dot is lost the message is *in doubt*: it is not offered again, and either
outcome is right.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final

from mta.config.hosts import Endpoint
from mta.demo.campaign import Mail

PAUSE_S: Final = 0.2
PATIENCE_S: Final = 60.0  # with one reply

_Pair = tuple[str, str]  # Message-ID and recipient


class _BrokenError(Exception):
    """The session is of no use any more."""


class Injection:
    """The sessions, and what was accepted. Everything may be read at any time from another thread."""

    def __init__(self, server: Endpoint, mails: Iterable[Mail], sessions: int) -> None:
        self.accepted: set[_Pair] = set()  # a 250 was given for them
        self.in_doubt: set[_Pair] = set()
        self.accepted_messages = self.refused_messages = self.messages_in_doubt = 0
        self.refused: Counter[str] = Counter()  # recipients refused for good, by reply
        self.trouble = ""  # why the last message was not taken, while that lasts
        self.octets = 0
        self.started_s = 0.0
        self.ended_s = 0.0  # 0 while it goes on
        self._server = server
        self._mails: Iterator[Mail] = iter(mails)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._session, name=f"session {number}", daemon=True)
                         for number in range(sessions)]
        self._left = sessions

    def start(self) -> None:
        """Begin."""
        self.started_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> bool:
        """Whether all sessions have ended."""
        return self.ended_s > 0

    @property
    def settled(self) -> int:
        """Messages that were accepted, refused for good, or are in doubt."""
        return self.accepted_messages + self.refused_messages + self.messages_in_doubt

    @property
    def seconds(self) -> float:
        """How long it took, or takes until now."""
        return (self.ended_s or time.monotonic()) - self.started_s

    @property
    def seconds_since_start(self) -> float:
        """Time since the first session was begun."""
        return time.monotonic() - self.started_s

    def stop(self, wait_s: float = 0.0) -> None:
        """Offer no further messages; wait so long for what is under way."""
        self._stop.set()
        deadline_s = time.monotonic() + wait_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline_s - time.monotonic(), 0.0))

    # -- one session ------------------------------------------------------------------------------------------------

    def _session(self) -> None:
        mail: Mail | None = None
        while not self._stop.is_set():
            try:
                with socket.create_connection((self._server.host, self._server.port), PATIENCE_S) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with connection.makefile("rb") as replies:
                        _expect(_reply(replies), 220)
                        connection.sendall(b"EHLO app.demo.example\r\n")
                        _expect(_reply(replies), 250)
                        while not self._stop.is_set():
                            mail = mail or self._next()
                            if mail is None:
                                connection.sendall(b"QUIT\r\n")
                                self._finished()
                                return
                            if self._offer(connection, replies, mail):
                                mail = None
                            else:
                                self._stop.wait(PAUSE_S)
            except (OSError, _BrokenError) as error:
                self.trouble = f"the session broke: {error}"
                if mail is not None and self._settled(mail):
                    mail = None
                self._stop.wait(PAUSE_S)
        self._finished()

    def _next(self) -> Mail | None:
        with self._lock:
            return next(self._mails, None)

    def _finished(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self.ended_s = time.monotonic()

    def _settled(self, mail: Mail) -> bool:
        return (mail.message_id, mail.recipients[0]) in self.in_doubt

    def _offer(self, connection: socket.socket, replies: BinaryIO, mail: Mail) -> bool:
        """One transaction. False when it is refused for now. Raises OSError, _BrokenError."""
        envelope = [f"MAIL FROM:<{mail.sender}> SIZE={len(mail.content)}",
                    *(f"RCPT TO:<{recipient}>" for recipient in mail.recipients), "DATA", ""]
        connection.sendall("\r\n".join(envelope).encode("ascii"))
        sender = _reply(replies)
        recipients = [_reply(replies) for _ in mail.recipients]
        go_ahead = _reply(replies)
        taken = [recipient for recipient, reply in zip(mail.recipients, recipients, strict=True) if reply[:1] == "2"]
        if go_ahead[:1] != "3":
            connection.sendall(b"RSET\r\n")
            _expect(_reply(replies), 250)
            bad = next((reply for reply in (sender, *recipients, go_ahead) if reply[:1] not in "23"), go_ahead)
            return self._refused(mail.recipients, bad)
        content = mail.content.replace(b"\r\n.", b"\r\n..")
        try:
            connection.sendall(content + b".\r\n")
            final = _reply(replies)
        except (OSError, _BrokenError):
            with self._lock:
                self.messages_in_doubt += 1
                self.in_doubt.update((mail.message_id, recipient) for recipient in mail.recipients)
            raise
        if final[:1] != "2":
            return self._refused(taken, final)
        self.trouble = ""
        with self._lock:
            self.accepted_messages += 1
            self.octets += len(mail.content)
            self.accepted.update((mail.message_id, recipient) for recipient in taken)
            for reply in recipients:
                if reply[:1] != "2":
                    self.refused[reply] += 1
        return True

    def _refused(self, recipients: Sequence[str], reply: str) -> bool:
        if reply[:1] != "5":
            self.trouble = reply
            return False
        with self._lock:
            self.refused_messages += 1
            self.refused[reply] += len(recipients)
        return True


def _reply(replies: BinaryIO) -> str:
    """A whole reply as one line. Raises OSError, _BrokenError."""
    texts = []
    while True:
        line = replies.readline(4096)
        if len(line) < 4 or not line.endswith(b"\n"):
            raise _BrokenError("the connection has ended")
        texts.append(line[4:].decode("utf-8", "replace").strip())
        if line[3:4] != b"-":
            return f"{line[:3].decode('ascii', 'replace')} {' '.join(texts)}"


def _expect(reply: str, code: int) -> None:
    if not reply.startswith(str(code)):
        raise _BrokenError(reply)
