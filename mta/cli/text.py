"""How the commands print: tables that fit the terminal, times and sizes for people, remote text made harmless."""

from __future__ import annotations

import datetime
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from mta.config.problems import printable

MIN_WIDTH: Final = 60

__all__ = ["Column", "age", "count", "duration", "print_table", "printable", "size", "stamp", "until", "width_of"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. The text of one that may shrink is cut off when the terminal is too narrow."""

    title: str
    right: bool = False
    shrinks: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], stream: TextIO | None = None) -> None:
    """Print rows under their titles. On a terminal it fits the width; into a pipe or file it is never cut."""
    stream = stream or sys.stdout
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [
        max([_display_width(column.title), *(_display_width(row[index]) for row in cells)])
        for index, column in enumerate(columns)
    ]
    limit = width_of(stream)
    if limit is not None:
        widths = _fit(columns, widths, limit)
    for row in [[column.title for column in columns], *cells]:
        line = "  ".join(
            _pad(_cut(cell, width), width, column.right)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        print(line.rstrip(), file=stream)


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal; None when `stream` is none."""
    if not stream.isatty():
        return None
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, MIN_WIDTH)
    except OSError:
        return 80


def stamp(time_us: int) -> str:
    """`2026-01-31T12:00:00Z`; a dash for none."""
    if not time_us:
        return "-"
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """`850ms`, `12s`, `3m`, `4h05m`, `6d02h`: two units at most."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m" if whole >= 600 or not whole % 60 else f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def age(time_us: int, now_us: int) -> str:
    """How long ago; a dash for none."""
    return duration(max(now_us - time_us, 0) / 1e6) if time_us else "-"


def until(time_us: int, now_us: int) -> str:
    """`in 4m`, `now` when it is past; a dash for none."""
    if not time_us:
        return "-"
    return f"in {duration((time_us - now_us) / 1e6)}" if time_us > now_us else "now"


def size(number: int) -> str:
    """`512 B`, `5.1 KB`, `48 MB` (decimal, as in the configuration)."""
    value = float(number)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(number: int, one: str, many: str = "") -> str:
    """`1 message`, `12,345 messages`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _fit(columns: Sequence[Column], widths: list[int], limit: int) -> list[int]:
    """Take what is too much from the widest of the columns that shrink, until it fits."""
    widths = list(widths)
    shrinking = [index for index, column in enumerate(columns) if column.shrinks]
    while sum(widths) + 2 * (len(widths) - 1) > limit and shrinking:
        widest = max(shrinking, key=lambda index: widths[index])
        if widths[widest] <= max(8, _display_width(columns[widest].title)):
            break
        widths[widest] -= 1
    return widths


def _display_width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _cut(text: str, width: int) -> str:
    if _display_width(text) <= width:
        return text
    while text and _display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _display_width(text))
    return space + text if right else text + space
