"""A fuzz input read as a script: what a session says, with short forms for what is said often.

An octet below 128 stands for itself; one from 128 on for a snippet of the target's table, round and round. So changing
one octet puts in or takes out a whole command, and what is kept in the corpora can still be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

LIMIT: Final = 4096
"""Octets of an input that are looked at; behind the snippets may stand many more."""


def expand(data: bytes, snippets: Sequence[bytes]) -> bytes:
    """The octets that an input stands for."""
    count = len(snippets)
    return b"".join([snippets[(octet - 128) % count] if octet > 127 else b"%c" % octet for octet in data[:LIMIT]])


def cut(stream: bytes, seed: int) -> Iterator[bytes]:
    """`stream` in pieces of sizes that `seed` decides: whole, in octets, or anything between, but not too many."""
    random = Random(seed)
    size = random.choice((1, 8, 32, 128, 1024, len(stream)))
    size = max(size, len(stream) // 40)
    position = 0
    while position < len(stream):
        end = position + 1 + int(size * random.random())
        yield stream[position:end]
        position = end


def lines(stream: bytes) -> list[bytes]:
    """`stream` in its lines, each with its LF."""
    return [line + b"\n" for line in stream.split(b"\n")[:-1]] + [stream[stream.rfind(b"\n") + 1 :]]
