"""A bare SMTP client and a DNS client, both without anything of ours in them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import dns.message
import dns.query
import dns.rcode

from mta.sandbox.client import Sandbox


class Smtp:
    """One connection to an MX host. Replies are `(code, lines)`; an end of the connection is `(0, [])`."""

    def __init__(self, sandbox: Sandbox, host: str, source: str = "127.0.0.1", early: bytes = b"") -> None:
        """`early` is there when the host first sees the connection: before its greeting, however slow we are."""
        address = (sandbox.address(host), sandbox.smtp_port)
        with standing_still(sandbox) if early else contextlib.nullcontext():
            self.socket = socket.create_connection(address, 60, (source, 0))
            self.socket.sendall(early)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up without a word."""
        self._stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Write octets."""
        self.socket.sendall(data)

    def reply(self) -> tuple[int, list[str]]:
        """Read one reply."""
        lines = []
        while line := self._stream.readline():
            lines.append(line[4:].decode().rstrip("\r\n"))
            if line[3:4] != b"-":
                return int(line[:3]), lines
        return 0, []

    def raw_line(self) -> bytes:
        """Read a line that may be no reply."""
        return self._stream.readline()

    def code(self) -> int:
        """Read one reply for its code."""
        return self.reply()[0]

    def say(self, line: str) -> int:
        """Send a command; the code of the reply."""
        self.send(line.encode() + b"\r\n")
        return self.code()

    def hello(self) -> list[str]:
        """Read the greeting, say EHLO; what the host offers."""
        assert self.code() == 220
        self.send(b"EHLO client.test\r\n")
        code, lines = self.reply()
        assert code == 250
        return lines[1:]

    def deliver(self, recipient: str, key: str = "k", sender: str = "s@x.test",
                body: bytes = b"hello\r\n") -> list[int]:
        """One transaction, command by command; the codes up to the first that ends it."""
        codes = [self.say(f"MAIL FROM:<{sender}>")]
        if codes[-1] == 250:
            codes.append(self.say(f"RCPT TO:<{recipient}>"))
        if codes[-1] == 250:
            codes.append(self.say("DATA"))
        if codes[-1] == 354:
            self.send(content(key, body) + b".\r\n")
            codes.append(self.code())
        return codes


@contextlib.contextmanager
def standing_still(sandbox: Sandbox) -> Iterator[None]:
    """The kernel goes on for it, and takes connections and octets."""
    sandbox.process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, sandbox.process.pid, os.WSTOPPED)
        yield
    finally:
        sandbox.process.send_signal(signal.SIGCONT)


def content(key: str, body: bytes = b"hello\r\n") -> bytes:
    """A message with a test id."""
    return b"X-Test-Id: %b\r\nSubject: test\r\n\r\n%b" % (key.encode(), body)


def ask(sandbox: Sandbox, name: str, rdtype: str, *, tcp: bool = False, timeout_s: float = 60.0) -> dns.message.Message:
    """One DNS question to the sandbox."""
    host, _, port = sandbox.dns.rpartition(":")
    question = dns.message.make_query(name, rdtype, use_edns=0, payload=1232)
    exchange = dns.query.tcp if tcp else dns.query.udp
    return exchange(question, host, timeout_s, int(port))


def records(answer: dns.message.Message) -> list[str]:
    """The data of the answer section, each record set sorted, for MX by preference; in lower case."""
    texts = [sorted(record.to_text().lower() for record in rrset) for rrset in answer.answer]
    return [text for rrset in texts for text in rrset]


def rcode(answer: dns.message.Message) -> str:
    """The outcome by name."""
    return dns.rcode.to_text(answer.rcode())
