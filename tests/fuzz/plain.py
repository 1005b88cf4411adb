"""Fuzzing without atheris: inputs that are kept are changed and put together at random. No guide, but twice as fast and
possible everywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

from tests.fuzz import corpus
from tests.fuzz.targets import Target


class Finding(Exception):  # noqa: N818 -- the error is its cause
    """An input with which something went wrong."""

    def __init__(self, data: bytes) -> None:
        super().__init__(corpus.line_of(data))
        self.data = data


def run(target: Target, cases: int, seconds: float, seed: int) -> int:
    """Try `cases` inputs, or as many as `seconds` allow; how many there were. Raises Finding."""
    random = Random(seed)
    known = [*target.seeds, *corpus.kept(target.name)]
    end = time.monotonic() + seconds
    for number in range(cases):
        if not number & 63 and time.monotonic() > end:
            return number
        data = changed(random, known, target)
        try:
            target.run(data)
        except Exception as error:
            raise Finding(data) from error
    return cases


def changed(random: Random, known: Sequence[bytes], target: Target) -> bytes:
    """One of the inputs, with some changes."""
    data = bytearray(random.choice(known))
    for _ in range(random.randint(1, 8)):
        kind, at = random.randint(0, 6), random.randint(0, len(data))
        if kind == 0 and data:
            data[at % len(data)] = random.randint(0, 255)
        elif kind == 1:
            data[at:at] = bytes((random.randint(0, 255),))
        elif kind == 2 and target.words:
            data[at:at] = random.choice(target.words)
        elif kind == 3:
            del data[at : at + random.randint(1, 4)]
        elif kind == 4:
            start = random.randint(0, len(data))
            data[at:at] = data[start : start + random.randint(1, 10)]
        elif kind == 5 and data:
            data[at % len(data)] ^= 1 << random.randint(0, 7)
        else:
            other = random.choice(known)
            start = random.randint(0, len(other))
            data[at:] = other[start:]
    return bytes(data[: target.longest])
