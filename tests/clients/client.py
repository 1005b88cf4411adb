"""What a client of ours is: how it is told to send a message, and what there is of it on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

Way = Literal["in clear", "STARTTLS", "implicit TLS", "Unix socket", "sendmail"]
Feature = Literal["8BITMIME", "SMTPUTF8", "DSN"]
Mechanism = Literal["PLAIN", "LOGIN", "SCRAM-SHA-256"]

WAYS: Final[tuple[Way, ...]] = get_args(Way)
FEATURES: Final[tuple[Feature, ...]] = get_args(Feature)
LIMIT_S: Final = 120.0  # that it does not hang: some start a virtual machine, and ours may be busy


class ClientError(Exception):
    """A client did not send, or what arrived is not what it sent; the text says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One message that a client is to send, and where to."""

    way: Way
    host: str
    port: int
    socket: str  # path of the listener's Unix socket
    sendmail: str  # path of our sendmail command
    ca_file: str  # of the authorities that are believed
    recipient: str
    sender: str = "news@x.test"
    user: str = "acme"
    password: str = "secret"
    feature: Feature | None = None
    mechanism: Mechanism | None = None  # the only one that is offered, or all are

    @property
    def tls(self) -> bool:
        """Whether it is encrypted, and so a login is wanted."""
        return self.way in ("STARTTLS", "implicit TLS")


@dataclass(frozen=True, slots=True)
class Example:
    """What a user would write: files, and the command that is run beside them."""

    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    reads: str = ""  # the file that is its standard input


class Services(ExitStack):
    """Servers that are started once for all calls, and stopped at the end."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self._running: dict[str, Any] = {}

    def get(self, name: str, make: Callable[[Path], AbstractContextManager[Any]]) -> Any:
        """The one of that name, which lives in a directory of its own."""
        if name not in self._running:
            self._running[name] = self.enter_context(make(self.directory / name))
        return self._running[name]


@dataclass(frozen=True, slots=True)
class Client:
    """A program or library that sends mail."""

    name: str
    needs: str  # what has to be installed
    version: Callable[[], str]  # empty: it is not installed, or cannot run here
    example: Callable[[Call], Example]
    ways: tuple[Way, ...]
    mechanisms: tuple[Mechanism, ...] = ()
    features: tuple[Feature, ...] = ()
    composes: bool = False  # it writes the header section itself, so its text is compared and not every byte
    relays: bool = False  # it is an MTA, which adds a Received of its own
    adds: bytes = b""  # what it puts behind the message
    send: Callable[[Call, Path, Services], None] | None = None  # how it is run, where that is more than a command

    def run(self, call: Call, directory: Path, services: Services) -> None:
        """Have it send `directory/message.eml` (CRLF) or `.txt` (LF). Raises ClientError."""
        if self.send is not None:
            self.send(call, directory, services)
        else:
            run(self.example(call), directory, call.ca_file)


def run(example: Example, directory: Path, ca_file: str) -> None:
    """Write the files of an example and run its command. Raises ClientError."""
    for name, content in example.files.items():
        path = directory / name
        path.write_text(content, encoding="utf-8")
        path.chmod(0o600 if name == "msmtprc" else 0o644)  # msmtp insists on it; Exim reads its own as another user
    # OpenSSL, Go, curl and Node believe the authorities in these files.
    believed = dict.fromkeys(("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), ca_file)
    environment = {**os.environ, "HOME": str(directory), **believed}
    with (directory / example.reads if example.reads else Path(os.devnull)).open("rb") as standard_input:
        try:
            done = subprocess.run(example.command, cwd=directory, env=environment, stdin=standard_input,
                                  capture_output=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise ClientError(f"did not end in {LIMIT_S:g} s") from None
    if done.returncode:
        said = (done.stderr + b"\n" + done.stdout).decode(errors="replace").strip()
        raise ClientError(f"exit code {done.returncode}: {said[-1000:]}")


def said(*command: str) -> str:
    """What a command writes, to either of its outputs; empty when there is none of that name."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False,
                          stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr
