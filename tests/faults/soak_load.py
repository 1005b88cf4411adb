"""What the soak puts in: sessions that pipeline and files for the spool directory, each message with its number.

A number is offered once. What became of it is known to whoever offered it: accepted, refused, or (when the connection
was lost after the content) unknown; then either is right.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

ANSWER_S: Final = 20.0
RETRY_S: Final = 0.05
FILES_MAX: Final = 60  # that wait in the spool directory
SENDER: Final = "list@sender.test"

Address = tuple[str, int]


def recipient(number: int, part: int, domain: str) -> str:
    """An address that says what it belongs to."""
    return f"u{number}.{part}@{domain}"


class Numbers:
    """Numbers, what they are addressed to, and what became of them. For several threads."""

    def __init__(self, domains: list[str], seed: int) -> None:
        self.accepted: dict[int, int] = {}  # number -> recipients
        self.refused: set[int] = set()
        self.unknown: dict[int, int] = {}
        self.files: set[int] = set()  # of the accepted, those that came as files
        self._domains = domains
        self._dice = random.Random(seed)
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> tuple[int, list[str], bytes]:
        """A new number, its recipients, and the content."""
        with self._lock:
            self._last += 1
            number = self._last
            count = 1 if self._dice.random() < 0.9 else self._dice.randint(2, 6)
            to = [recipient(number, part, self._dice.choice(self._domains)) for part in range(count)]
            size = self._dice.choice((300, 1500, 5000)) if self._dice.random() < 0.99 else 60_000
        head = (f"From: {SENDER}\r\nTo: {to[0]}\r\nSubject: number {number}\r\nX-Test-Id: {number}\r\n"
                f"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\nMessage-ID: <{number}@sender.test>\r\n\r\n")
        line = "The quick brown fox jumps over the lazy dog, and back again.\r\n"
        return number, to, (head + line * (size // len(line))).encode()


class Gate:
    """Opens and closes the load."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.ended = threading.Event()

    def passes(self) -> bool:
        """Wait until the gate is open; False when the load has ended for good."""
        while not self.open.wait(0.2):
            if self.ended.is_set():
                return False
        return not self.ended.is_set()


class Session(threading.Thread):
    """One client by SMTP: message after message, each envelope in one write, over one connection while it lasts."""

    def __init__(self, numbers: Numbers, gate: Gate, address: Callable[[], Address], seed: int) -> None:
        super().__init__(daemon=True)
        self._numbers = numbers
        self._gate = gate
        self._address = address
        self._dice = random.Random(seed)
        self._socket: socket.socket | None = None
        self._buffer = b""

    def run(self) -> None:
        """Until the gate is closed for good."""
        while self._gate.passes():
            try:
                if self._socket is None:
                    self._connect()
            except (OSError, EOFError):
                self._drop()
                self._gate.ended.wait(RETRY_S)
                continue
            self._send()
            if self._dice.random() < 0.01:
                self._drop()
        self._drop()

    def _connect(self) -> None:
        self._buffer = b""
        self._socket = socket.create_connection(self._address(), ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._reply() != 220:
            raise EOFError
        self._socket.sendall(b"EHLO sender.test\r\n")
        if self._reply() != 250:
            raise EOFError

    def _send(self) -> None:
        assert self._socket is not None
        numbers = self._numbers
        number, to, content = numbers.next()
        envelope = [f"MAIL FROM:<{SENDER}>\r\n", *(f"RCPT TO:<{one}>\r\n" for one in to), "DATA\r\n"]
        sent = False
        try:
            self._socket.sendall("".join(envelope).encode())
            replies = [self._reply() for _ in envelope]
            if replies[-1] != 354 or set(replies[:-1]) != {250}:
                numbers.refused.add(number)
                self._drop()
                self._gate.ended.wait(RETRY_S)
                return
            sent = True
            self._socket.sendall(content + b".\r\n")
            reply = self._reply()
        except (OSError, EOFError):
            if sent:
                numbers.unknown[number] = len(to)
            else:
                numbers.refused.add(number)
            self._drop()
            return
        if reply == 250:
            numbers.accepted[number] = len(to)
        else:
            numbers.refused.add(number)

    def _reply(self) -> int:
        assert self._socket is not None
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if end:
                self._buffer = rest
                if line[3:4] != b"-":
                    return int(line[:3])
                continue
            more = self._socket.recv(65_536)
            if not more:
                raise EOFError
            self._buffer += more

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Files(threading.Thread):
    """Renames files into the spool directory: messages with an envelope in front, and batches."""

    def __init__(self, numbers: Numbers, gate: Gate, directory: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._numbers = numbers
        self._gate = gate
        self._directory = directory
        self._dice = random.Random(seed)

    def run(self) -> None:
        """Until the gate is closed for good."""
        (self._directory / "tmp").mkdir(parents=True, exist_ok=True)
        while self._gate.passes():
            if self.waiting() >= FILES_MAX:
                self._gate.ended.wait(RETRY_S)
                continue
            self._put(self._dice.randint(2, 200) if self._dice.random() < 0.005 else 1)

    def waiting(self) -> int:
        """Files that were not taken yet."""
        return len(os.listdir(self._directory)) - 3  # tmp, failed, .claimed

    def _put(self, count: int) -> None:
        messages = [self._numbers.next() for _ in range(count)]
        name = f"{messages[0][0]}.eml"
        if count == 1:
            _, to, content = messages[0]
            head = "".join([f"X-Sender: {SENDER}\r\n", *(f"X-Receiver: {one}\r\n" for one in to)])
            data = head.encode() + content
        else:
            name = f"{messages[0][0]}.bsmtp"
            data = b"".join(
                "".join([f"MAIL FROM:<{SENDER}>\r\n", *(f"RCPT TO:<{one}>\r\n" for one in to), "DATA\r\n"]).encode()
                + content + b".\r\n" for _, to, content in messages)
        path = self._directory / "tmp" / name
        path.write_bytes(data)
        path.rename(self._directory / name)
        for number, to, _ in messages:
            self._numbers.accepted[number] = len(to)
            self._numbers.files.add(number)
