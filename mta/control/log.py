"""Diagnostics on stderr: one line each, with the time and the process that speaks.

Under systemd the journal knows the time, so the line begins with the priority that sd-daemon(3) defines instead.
Text from outside that gets into a line is escaped: a line stays a line, and no mark that turns the direction of writing
makes it read otherwise.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Final

_PRIORITY: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A}


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning worker-1: text`, or `<4>worker-1: text` for the journal."""

    def __init__(self, who: str, journal: bool) -> None:
        super().__init__()
        self._who = who
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        # A traceback has lines of its own: each is indented, so that none looks like a record.
        text = text.translate(_ESCAPES).replace("\n", "\n    ")
        if not text.isascii():
            text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
        if self._journal:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{self._who}: {text}".replace("\n", "\n<7>")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z {record.levelname.lower()} {self._who}: {text}"


def set_up(who: str, level: str) -> None:
    """Send the process's log records of `level` (`debug`, `info`, `warning`, `error`) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(who, stderr_is_journal()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def set_level(level: str) -> None:
    """Change the least severe level that is written."""
    logging.getLogger().setLevel(level.upper())


def stderr_is_journal() -> bool:
    """Whether stderr goes to the systemd journal: JOURNAL_STREAM names the device and inode of our stderr."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError):
        return False


def announce(line: str) -> None:
    """Write a line that programs wait for to stderr as it is, whatever the level."""
    try:
        # One write: print() makes two of it when stderr is not buffered, and others write there as well.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens any more; mail goes on
