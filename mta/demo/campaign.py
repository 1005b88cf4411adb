"""The mail of the demo: newsletters, receipts and notes from several senders, made from a seed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mta.demo.internet import Internet, Kind, shares


@dataclass(frozen=True, slots=True)
class Mail:
    """One message to inject. Its body carries a checksum by which the receivers see damage."""

    message_id: str  # with its brackets
    sender: str  # of the envelope
    recipients: tuple[str, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer of the mailer, with a sender domain of its own."""

    name: str
    domain: str
    trade: str


TENANTS: Final = (
    Tenant("Harbor Coffee", "harborcoffee.example", "coffee"),
    Tenant("Paper & Ink", "paperandink.example", "notebooks"),
    Tenant("Night Train Travel", "nighttrain.example", "sleeping cars"),
    Tenant("Fixit Tools", "fixittools.example", "spanners"),
    Tenant("Ticket Booth", "ticketbooth.example", "concerts"),
)

_RECEIPTS: Final = 0.22  # share of the messages; the rest are newsletters
_NOTES: Final = 0.03
_FIRST_NAMES: Final = (
    "ada", "amir", "anna", "bea", "carlos", "chen", "dora", "emil", "fatima", "finn", "grace", "hugo", "ines", "ivan",
    "jana", "jonas", "kenji", "lea", "lena", "marco", "maria", "mia", "nadia", "noah", "olga", "omar", "paul", "priya",
    "rosa", "sam", "sofia", "tariq", "tom", "vera", "wei", "yara", "zoe",
)  # fmt: skip
_LAST_NAMES: Final = (
    "adler", "bauer", "brown", "costa", "diaz", "eriksen", "fischer", "garcia", "haddad", "ito", "jensen", "kaya",
    "khan", "kowalski", "larsen", "lopez", "meyer", "moreau", "nguyen", "novak", "okafor", "olsen", "patel", "petrov",
    "rossi", "santos", "sato", "silva", "smith", "suzuki", "tanaka", "vargas", "weber", "wright", "yilmaz", "zhang",
)  # fmt: skip
_SENTENCES: Final = (
    "This week we have put aside a few things that we think you will like.",
    "Everything is made in small numbers, so some of it will be gone by the weekend.",
    "If you are in town, come by: the first cup is on us.",
    "Our workshop is open on Thursdays from four to nine.",
    "Members get free delivery until the end of the month.",
    "We asked three of our customers what they would do differently, and they told us.",
    "...and yes, the blue ones are back.",
    "The new catalogue is here; it is a little longer than the last one.",
)


class Campaign:
    """`count` messages, the same ones for the same seed. Iterating makes them one by one."""

    def __init__(self, count: int, seed: int, internet: Internet) -> None:
        self.count = count
        self._seed = seed
        self._internet = internet

    def __iter__(self) -> Iterator[Mail]:
        rng = random.Random(f"campaign {self._seed}")
        kinds = shares(self.count)
        rng.shuffle(kinds)
        for number, kind in enumerate(kinds):
            yield self._mail(rng, number, kind, kinds)

    def _mail(self, rng: random.Random, number: int, kind: Kind, kinds: Sequence[Kind]) -> Mail:
        tenant = rng.choice(TENANTS)
        recipients = [self._recipient(rng, number, 0, kind)]
        draw = rng.random()
        if draw < _NOTES:
            extra = rng.randint(1, 4)
            recipients += [self._recipient(rng, number, index + 1, rng.choice(kinds)) for index in range(extra)]
            part, subject, body = "notes", f"Notes of our meeting no. {number}", _note(rng, tenant)
        elif draw < _NOTES + _RECEIPTS:
            part, subject, body = "receipts", f"Your receipt no. {700_000 + number}", _receipt(rng, tenant, number)
        else:
            part, subject, body = "news", f"News from {tenant.name}", _newsletter(rng, tenant, recipients[0])
        message_id = f"<{part}.{self._seed}.{number}@{tenant.domain}>"
        octets = body.encode("ascii")
        head = (
            f"From: {tenant.name} <{part}@{tenant.domain}>\r\nTo: {', '.join(recipients)}\r\nSubject: {subject}\r\n"
            f"Date: {_DATE}\r\nMessage-ID: {message_id}\r\nX-Test-Crc32: {zlib.crc32(octets):08x}\r\n"
            "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n"
        )
        if part == "news":
            head += (f"List-Unsubscribe: <https://{tenant.domain}/unsubscribe/{number}>\r\n"
                     "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n")
        return Mail(message_id, f"bounces+{part}@{tenant.domain}", tuple(recipients), f"{head}\r\n".encode() + octets)

    def _recipient(self, rng: random.Random, number: int, index: int, kind: Kind) -> str:
        name = f"{rng.choice(_FIRST_NAMES)}.{rng.choice(_LAST_NAMES)}"
        # The number keeps addresses apart, so that no two messages meet the same greylist entry or full mailbox.
        return f"{name}{number}{'abcde'[index] if index else ''}@{self._internet.choose(rng, kind)}"


_DATE: Final = "Mon, 05 Jan 2026 09:00:00 +0000"


def _greeting(recipient: str) -> str:
    return f"Dear {recipient.partition('.')[0].title()},\r\n\r\n"


def _newsletter(rng: random.Random, tenant: Tenant, recipient: str) -> str:
    paragraphs = []
    for _ in range(rng.randint(8, 30)):
        lines = rng.sample(_SENTENCES, 4)
        paragraphs.append("\r\n".join(lines))
    return (f"{_greeting(recipient)}all about {tenant.trade}, once a week.\r\n\r\n" + "\r\n\r\n".join(paragraphs)
            + f"\r\n\r\n{tenant.name}\r\n")


def _receipt(rng: random.Random, tenant: Tenant, number: int) -> str:
    prices = [rng.randint(199, 9999) for _ in range(rng.randint(1, 8))]
    rows = "\r\n".join(f"  item {index + 1:<40}{price / 100:>10.2f}" for index, price in enumerate(prices))
    return (f"Thank you for your order.\r\n\r\n{rows}\r\n  {'total':<45}{sum(prices) / 100:>10.2f}\r\n\r\n"
            f"Receipt no. {700_000 + number}. Keep it for your records.\r\n{tenant.name}\r\n")


def _note(rng: random.Random, tenant: Tenant) -> str:
    return "Hello all,\r\n\r\n" + "\r\n".join(rng.sample(_SENTENCES, 5)) + f"\r\n\r\n{tenant.name}\r\n"
