"""What is wrong with a configuration, said to the operator: one line per problem, with its place in the file."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

OptionPath: TypeAlias = tuple[str | int, ...]
"""Where an option stands: names of sections and options, domains of mappings, positions in lists."""


class Problem(NamedTuple):
    """One fault. Lines and columns count from 1; line 0 is the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        """`file:line:column: message`, always one line."""
        place = f":{self.line}:{self.column}" if self.line else ""
        return f"{printable(self.file)}{place}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds all that was found, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        """`problems` is not empty."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Fault(Exception):  # noqa: N818 -- never leaves what reads the configuration
    """What is being read is of no use; the fault was reported."""


def printable(text: str, limit: int = 4096) -> str:
    """`text` on one line, at most `limit` characters, with what is invisible or breaks lines written as escapes."""
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def quoted(text: str) -> str:
    """`text` in double quotes for a message, shortened when long."""
    return f'"{printable(text, 60)}"'


def path_text(path: OptionPath) -> str:
    """`listeners[0].smtp`, `shaping.domains[example.org].tls`."""
    text = ""
    for part in path:
        if isinstance(part, str) and re.fullmatch(r"[a-z0-9_]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{printable(str(part), 60)}]"
    return text
