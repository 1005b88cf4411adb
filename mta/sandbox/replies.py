"""SMTP replies of the sandbox, as bytes ready for the wire."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its code, and its bytes with the code on every line (RFC 5321 4.2.1)."""

    code: int
    wire: bytes

    @property
    def text(self) -> str:
        """The first line, for the log."""
        return self.wire.partition(b"\r\n")[0].decode("utf-8", "replace")

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it (RFC 5321 3.8)."""
        return self.code == 421

    @classmethod
    def parse(cls, text: str) -> Reply:
        """Read `451 4.7.1 try later`, lines parted by newlines. Raises ValueError without a code from 200 to 599."""
        code, rest = text[:3], text[3:]
        if not re.fullmatch("[2-5][0-9][0-9]", code) or (rest and rest[0] != " "):
            raise ValueError('a reply begins with its code, as in "451 4.7.1 try later"')
        lines = rest[1:].split("\n")
        wire = "".join(f"{code}{'-' if n < len(lines) else ' '}{line}\r\n" for n, line in enumerate(lines, 1))
        return cls(int(code), wire.encode())
