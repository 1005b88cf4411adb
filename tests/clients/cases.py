"""What each client is tried with, the messages, and what has to have arrived."""

from __future__ import annotations

import email
import email.policy
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Final

from tests.clients.client import Call, Client, ClientError, Feature, Mechanism, Way
from tests.clients.libraries import LIBRARIES
from tests.clients.programs import PROGRAMS
from tests.clients.relays import RELAYS
from tests.clients.world import Arrived, World

CLIENTS: Final[tuple[Client, ...]] = (*LIBRARIES, *PROGRAMS, *RELAYS)

TEXT: Final = "hello\n.\n..two dots\n.one dot\n  indented\n\nFrom here on\nMAIL FROM:<>\nlast\n"
_WIDE: Final = "grüße, こんにちは\n"
_HARD: Final = "trailing white space \t \n" + "x" * 998 + "\n\n\n"
_OURS: Final = re.compile(
    rb"Received: (?:from [^\r]*\r\n\t)?by mta\.test (?P<how>[^\r]*?) id \w+\r\n\tfor <[^>]*>;\r\n\t[^\r]*\r\n")
_RELAYS: Final = re.compile(rb"Received: (?:[^\r]|\r\n[ \t])*\r\n")


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to try."""

    client: Client
    way: Way
    mechanism: Mechanism | None = None
    feature: Feature | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.client.name, self.way, self.mechanism, self.feature))).replace(" ", "_")


def cases(client: Client) -> Iterator[Case]:
    """Each way with everything offered, each mechanism alone, each feature in the first way."""
    for way in client.ways:
        yield Case(client, way)
    for mechanism in client.mechanisms:
        yield Case(client, "STARTTLS", mechanism)
    for feature in client.features:
        yield Case(client, client.ways[0], feature=feature)


def make(call: Call, client: Client) -> tuple[bytes, str]:
    """A message for a call, and its text."""
    text = TEXT if client.composes else TEXT + _HARD
    if call.feature in ("8BITMIME", "SMTPUTF8"):
        text += _WIDE
    name = "Grün" if call.feature == "SMTPUTF8" else "Green"
    header = (f"From: {name} <{call.sender}>\nTo: {call.recipient}\nSubject: the subject\nX-Folded: one\n two\n"
              "\tthree\nX-Empty:\nX-Spaces:   in front, and behind   \nDate: Mon, 02 Jan 2006 15:04:05 +0000\n"
              f"Message-ID: <{call.recipient.encode().hex()}@x.test>\nMIME-Version: 1.0\n"
              "Content-Type: text/plain; charset=utf-8\n"
              f"Content-Transfer-Encoding: {'7bit' if text.isascii() else '8bit'}\n\n")
    return (header + text).encode(), text


def attempt(world: World, case: Case) -> None:
    """Have the client send, and look at what has arrived. Raises ClientError."""
    call = world.call(case.way, case.mechanism, case.feature)
    message, text = make(call, case.client)
    with tempfile.TemporaryDirectory(prefix="client-", dir=world.directory) as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "message.txt").write_bytes(message)
        (directory / "message.eml").write_bytes(message.replace(b"\n", b"\r\n"))
        (directory / "text.txt").write_text(text)
        case.client.run(call, directory, world.services)
    try:
        arrived = world.arrived(call.recipient)
    except TimeoutError as error:
        raise ClientError(str(error)) from None
    _check_way(case, arrived)
    if case.client.composes:
        _check_text(arrived.content, text)
    else:
        _check_bytes(case.client, arrived.content, message.replace(b"\n", b"\r\n") + case.client.adds)
    if arrived.sender != call.sender:
        raise ClientError(f"the sender became {arrived.sender!r}")
    if case.feature == "DSN" and "NOTIFY=SUCCESS,FAILURE" not in arrived.wishes:
        raise ClientError(f"the wishes became {arrived.wishes!r}")
    if case.feature == "SMTPUTF8" and "SMTPUTF8" not in arrived.parameters:
        raise ClientError("it was not sent on with SMTPUTF8")


def _check_way(case: Case, arrived: Arrived) -> None:
    """Our Received says how it came."""
    found = _OURS.match(arrived.content)
    if found is None:
        raise ClientError(f"it does not begin with our Received: {arrived.content[:300]!r}")
    how = found["how"].decode()
    wanted = {"in clear": r"with (UTF8SM|ESM|SM)TP", "STARTTLS": "with (UTF8SM|ESM)TPSA",
              "implicit TLS": "with (UTF8SM|ESM)TPSA", "Unix socket": r"\(local socket\)",
              "sendmail": r"\(spool directory, userid \d+\)"}[case.way]
    if not re.fullmatch(wanted, how):
        raise ClientError(f"it came {how!r}")


def _check_bytes(client: Client, content: bytes, sent: bytes) -> None:
    """Every byte is there, with nothing but our line before it, and that of a relay."""
    if not content.endswith(sent):
        raise ClientError(f"it does not end with what was sent but with {content[-300:]!r}")
    before = content[: len(content) - len(sent)]
    found = _OURS.match(before)
    rest = before[found.end() if found else 0 :]
    if rest and not (client.relays and _RELAYS.fullmatch(rest)):
        raise ClientError(f"there is {rest!r} before it")


def _check_text(content: bytes, text: str) -> None:
    """Subject and text are what the client was given."""
    message = email.message_from_bytes(content, _class=EmailMessage, policy=email.policy.default)
    if message["Subject"] != "the subject":
        raise ClientError(f"the subject became {message['Subject']!r}")
    body = message.get_content().replace("\r\n", "\n")
    if body.rstrip("\n") != text.rstrip("\n"):
        raise ClientError(f"the text became {body!r}")
