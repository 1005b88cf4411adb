"""The terminal: colours where they are wanted, bars, lines that fit, a screen of its own while the view lasts."""

from __future__ import annotations

import os
from typing import Final, TextIO

from mta.cli.text import printable

MIN_WIDTH: Final = 60
MAX_WIDTH: Final = 110  # of text; on a wider terminal the rest stays empty, as the eye loses the line

_COLOURS: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "": ""}
_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # another screen, no cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_SPARKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_SPARKS: Final = " .:-=+*#@"


class Terminal:
    """Where the demo writes: a terminal, or something that is none."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        term = os.environ.get("TERM", "")
        self.live = stream.isatty() and term not in ("", "dumb")
        self.colours = self.live and not os.environ.get("NO_COLOR")
        encoding = (stream.encoding or "").lower().replace("-", "")
        self.unicode = encoding.startswith("utf") and term != "linux"  # its console font has no such bars
        self._on_screen = False

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self.stream.fileno())
        except (OSError, ValueError):
            columns, rows = 80, 24
        return max(columns, MIN_WIDTH), max(rows, 10)

    @property
    def width(self) -> int:
        """Columns for text."""
        return min(self.size()[0], MAX_WIDTH) if self.live else 120

    def paint(self, text: str, colour: str) -> str:
        """`text` in a colour, or as it is."""
        code = _COLOURS[colour]
        return f"\x1b[{code}m{text}\x1b[0m" if code and self.colours and text else text

    def bar(self, share: float, width: int, colour: str) -> str:
        """A bar of `width` columns."""
        done = round(min(max(share, 0.0), 1.0) * width)
        full, empty = ("█", "░") if self.unicode else ("#", ".")
        return self.paint(full * done, colour) + self.paint(empty * (width - done), "dim")

    def spark(self, values: list[float], top: float) -> str:
        """One character for each value, higher for a larger one."""
        marks = _SPARKS if self.unicode else _ASCII_SPARKS
        steps = len(marks) - 1
        return "".join(marks[max(1, min(round(value / top * steps), steps)) if value > 0 else 0] for value in values)

    def say(self, text: str = "") -> None:
        """Write a line."""
        print(text, file=self.stream, flush=True)

    def show(self, lines: list[str]) -> None:
        """Show a frame in place of the last one. Lines must fit the width."""
        begin = "" if self._on_screen else _ENTER
        self._on_screen = True
        # Line by line over the old frame: clearing the screen first would flicker.
        rows = "\r\n".join(f"{line}\x1b[K" for line in lines[: self.size()[1]])
        self.stream.write(f"{begin}\x1b[H{rows}\x1b[J")
        self.stream.flush()

    def leave(self) -> None:
        """Back to the screen as it was before the first frame."""
        if self._on_screen:
            self._on_screen = False
            try:
                self.stream.write(_LEAVE)
                self.stream.flush()
            except OSError:
                pass  # it was closed


def fit(text: str, width: int) -> str:
    """`text` made harmless, cut to `width` columns and filled up to it."""
    return cut(text, width).ljust(width)


def cut(text: str, width: int) -> str:
    """`text` made harmless and cut to `width` columns."""
    text = printable(text, 500)
    if not text.isascii():
        text = text.encode("ascii", "backslashreplace").decode()  # one column each, whatever the terminal has
    return text if len(text) <= width else f"{text[: max(width - 2, 0)]}.."[:width]
