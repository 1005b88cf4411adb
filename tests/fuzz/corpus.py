"""Inputs that are kept: a text file for each target, one input a line, as Python would write it between quotes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CORPORA: Final = HERE / "corpora"
"""What the fuzzer found on its way: the fewest inputs that go through all the code that it reached."""

FINDINGS: Final = HERE / "findings"
"""What showed a mistake once, each below a comment that says which."""

LARGEST: Final = 35_000
"""Octets of a file of the corpora: all of them stay below a megabyte."""


def line_of(data: bytes) -> str:
    """An input as a line."""
    text = data.decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"\\x23{text[1:]}" if text.startswith("#") else text


def input_of(line: str) -> bytes:
    """The input in a line. Raises ValueError."""
    return codecs.decode(line, "unicode_escape").encode("latin-1")


def read(path: Path) -> list[bytes]:
    """The inputs in a file; none when it does not exist."""
    if not path.exists():
        return []
    return [input_of(line) for line in path.read_text("ascii").split("\n") if line and not line.startswith("#")]


def kept(name: str) -> list[bytes]:
    """All inputs that are kept for a target."""
    return [b"", *read(CORPORA / f"{name}.txt"), *read(FINDINGS / f"{name}.txt")]


def keep(name: str, inputs: Iterable[bytes]) -> int:
    """Make these the corpus of a target, short ones first as far as there is room; how many there are."""
    lines: list[str] = []
    size = 0
    for data in sorted(filter(None, set(inputs)), key=lambda data: (len(data), data)):
        line = line_of(data)
        size += len(line) + 1
        if size > LARGEST:
            break
        lines.append(line)
    CORPORA.mkdir(exist_ok=True)
    (CORPORA / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")
    return len(lines)


def note_finding(name: str, data: bytes, what: str) -> None:
    """Put an input with which something went wrong to those that are tried for ever."""
    FINDINGS.mkdir(exist_ok=True)
    with (FINDINGS / f"{name}.txt").open("a", encoding="ascii") as file:
        file.write(f"# {ascii(what[:100])[1:-1]}\n{line_of(data)}\n")
