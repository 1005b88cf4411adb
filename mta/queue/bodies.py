"""Reading the contents of messages back, and setting aside what is left of damaged ones.

All of it blocks, and may be called from any native thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mta.queue.errors import BodyDamaged, BodyUnreadable
from mta.queue.fileops import FileOps
from mta.queue.ids import format_id
from mta.queue.journal import content_crc, segment_path
from mta.queue.records import BodyRef, Message

# What says that content is gone. All else, such as too many open files, passes.
_DAMAGE: Final = (errno.ENOENT, errno.EIO)


class Bodies:
    """The contents in the journal of one shard."""

    def __init__(self, journal: Path, quarantine: Path, files: FileOps,
                 place_now: Callable[[int], BodyRef | None]) -> None:
        """`place_now` asks the index where the content of a message lies."""
        self._journal = journal
        self._quarantine = quarantine
        self._files = files
        self._place_now = place_now

    def read(self, message: Message) -> bytes:
        """The content of `message`, checked. Raises BodyDamaged, with the remains set aside, or BodyUnreadable."""
        content = message.content
        if content is not None:
            return content
        place = message.body
        content = self._read_at(place)
        if content is None:
            # It may have been copied elsewhere, and its old segment be gone or in other use.
            now = self._place_now(message.id)
            if now is not None and now != place:
                message.body = now
                content = self._read_at(now)
        if content is None:
            remains = self.set_aside(message)
            raise BodyDamaged(f"message {format_id(message.id)}: the content on disk is damaged; {remains}")
        return content

    def set_aside(self, message: Message) -> str:
        """Copy what is readable of the content to quarantine. Says what became of it, for the operator."""
        path = self._quarantine / f"{format_id(message.id)}.eml"
        try:
            remains = b"" if message.body is None else self._bytes_at(message.body)
            self._files.create(path, remains)
        except (BodyUnreadable, OSError) as error:
            return f"what is readable of it could not be set aside: {error}"
        return f"what is readable of it is in {path}"

    def _read_at(self, place: BodyRef | None) -> bytes | None:
        if place is None:
            return None
        content = self._bytes_at(place)
        return content if len(content) == place.length and content_crc(content) == place.crc else None

    def _bytes_at(self, place: BodyRef) -> bytes:
        path = segment_path(self._journal, place.segment)
        try:
            fd = self._files.open(path, os.O_RDONLY)
            try:
                return self._files.pread(fd, place.length, place.offset)
            finally:
                self._files.close(fd)
        except OSError as error:
            if error.errno in _DAMAGE:
                return b""
            raise BodyUnreadable(f"{path} cannot be read: {error.strerror or error}") from None
