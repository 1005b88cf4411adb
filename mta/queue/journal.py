"""The journal: segment files of frames, and the only place where accepted mail becomes durable.

A *frame* is one group commit, all or nothing: header, operations (msgpack, `mta.queue.transaction`), a table of the
blobs (length and CRC-32C each), the blobs (contents of messages), zeros up to the next page. Frames begin on pages, so
that no byte which is on stable storage is ever written again.

A *segment* is a file `NNNNNNNN.seg`: one page with a header, then frames. It is written by one life of one process:
opening the shard begins a new segment. The header tells where the segment before it ended, which makes all segments
one chain; what lies beyond that end in the older file does not count. Segments are allocated ahead, and files whose
messages are all gone are used again: overwriting blocks that were written before makes `fdatasync` cheaper by a third
(bench/store.py), as the file system has nothing of its own to write. In a new file the place of small frames is
written with zeros for that, behind a group and not within it (`write_ahead`). Old bytes in a file that is used again,
and bytes in messages that look like frames, are no danger: each segment has a random *salt* with which all its frames
begin.

When a frame cannot be written, its place is wiped. If that was for want of space the next frame goes there; after any
other error (a failed `fdatasync` is told once, and what it was about is gone) the segment is given up at its last
durable frame, and the next attempt begins another.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from google_crc32c import extend, value

from mta.queue.encoding import Position
from mta.queue.fileops import Buffer, FileOps
from mta.queue.records import BodyRef

PAGE: Final = 4096

_SEGMENT_HEADER: Final = Struct(">8sI8sIQI")  # magic, number, salt, number and end of the segment before, CRC-32C
_MAGIC: Final = b"MTAseg2\n"
_FRAME_HEADER: Final = Struct(">8sIIQI")  # salt, length of the operations, blobs, time, CRC-32C up to the contents
_FRAME_HEADER_CHECKED: Final = _FRAME_HEADER.size - 4
_BLOB: Final = Struct(">II")  # length, CRC-32C

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_ZEROS: Final = bytes(PAGE)
_KEPT_FOR_REUSE: Final = 1
_LEAST_ALLOCATION: Final = 1 << 20
_AHEAD: Final = 1 << 20  # zeros written ahead at once: what waits for their sync is one group of a hundred
_ZEROS_AHEAD: Final = bytes(_AHEAD)
_SMALL: Final = 32 << 10  # of frames above, each sync has so much to do that zeros would cost more than they save


def content_crc(content: bytes) -> int:
    """CRC-32C of a content (RFC 3720 appendix B.4).

    The processor has an instruction for it: 0.3 µs for 5 KB where zlib's CRC-32 takes 4, and the GIL is kept, which is
    slow to come back beside a busy hub.
    """
    crc: int = value(content)
    return crc


def segment_path(directory: Path, number: int) -> Path:
    """The file of a segment."""
    return directory / f"{number:08d}.seg"


def segment_numbers(directory: Path) -> list[int]:
    """The segments in a directory, sorted."""
    return sorted(int(name[:-4]) for name in os.listdir(directory) if name.endswith(".seg") and name[:-4].isdigit())


class Written(NamedTuple):
    """Where a frame has been put."""

    end: Position
    size: int
    blobs: list[BodyRef]


@dataclass(slots=True)
class _Spare:
    """A segment that is not begun."""

    number: int
    fd: int
    capacity: int
    written: int = 0  # up to there its blocks were written before: mostly all of a file that is used again


class Journal:
    """The writing end. All of it belongs to the disk thread, but `retire`."""

    def __init__(self, directory: Path, segment_size: int, files: FileOps, end: Position) -> None:
        """`end` is where the journal ends now; writing goes on in the segment after it. Raises OSError."""
        self.end = end
        self.syncs = 0
        self._directory = directory
        self._segment_size = segment_size // PAGE * PAGE
        self._files = files
        self._fd = -1  # of the segment being written; -1 when the next frame begins a new one
        self._capacity = 0
        self._written = 0  # up to there the segment's blocks were written before
        self._size = 0  # of the last frame
        self._salt = b""
        self._spare: _Spare | None = None
        self._retired: deque[int] = deque()  # filled by the index thread
        for number in segment_numbers(directory):
            if number > end.segment + 1:  # the next one is used as it is: it was allocated, or begun in vain
                files.unlink(segment_path(directory, number))

    def append(self, operations: bytes, contents: list[bytes], time_us: int) -> Written:
        """Write one frame and wait until it is durable. Raises OSError; then the journal is as it was.

        Hot path (bench/store.py).
        """
        crcs = [content_crc(content) for content in contents]
        table = b"".join([_BLOB.pack(len(content), crc) for content, crc in zip(contents, crcs, strict=True)])
        at = _FRAME_HEADER.size + len(operations) + len(table)
        size = -(-(at + sum(map(len, contents))) // PAGE) * PAGE

        fd = self._fd
        if fd >= 0 and self.end.offset + size <= self._capacity:
            number, start = self.end
            salt, offset = self._salt, start
            buffers: list[Buffer] = []
        else:
            # From here on the segment before is closed: the header of the next one may tell already where it ended.
            self._close()
            spare = self._prepared(PAGE + size)
            number, fd, start, offset = spare.number, spare.fd, PAGE, 0
            salt = os.urandom(8)
            header = _segment_header(number, salt, self.end)
            buffers = [header, _ZEROS[len(header):]]
        buffers.append(_frame_head(salt, start, operations, table, len(contents), time_us))
        buffers.append(operations)
        buffers.append(table)
        buffers += contents
        blobs = []
        at += start
        for content, crc in zip(contents, crcs, strict=True):
            blobs.append(BodyRef(number, at, len(content), crc))
            at += len(content)
        if at % PAGE:
            buffers.append(_ZEROS[at % PAGE:])

        try:
            self._files.write_all(fd, buffers, offset)
            self._files.fdatasync(fd)
        except OSError as failure:
            self._undo(failure)
            raise
        self.syncs += 1
        if offset == 0:
            self._fd, self._capacity, self._salt, self._spare = fd, spare.capacity, salt, None
            self._written = spare.written
        self.end = Position(number, start + size)
        self._size = size
        return Written(self.end, size, blobs)

    def prepare(self) -> None:
        """Have the next segment ready before it is needed. Raises OSError; then it is tried when it is needed."""
        if self._spare is None and (self._fd < 0 or self.end.offset > self._capacity // 2):
            self._prepared(self._segment_size)

    def write_ahead(self) -> None:
        """Have the place of the next small frames written once, with zeros, which makes their syncs cheaper. It syncs.

        Nothing is lost when this fails, as the space is taken and each frame is synced anyway: it is left then for
        this segment.
        """
        at = max(self._written, self.end.offset)
        if self._fd < 0 or self._size > _SMALL or at - self.end.offset > _SMALL or at >= self._capacity:
            return
        size = min(_AHEAD, self._capacity - at)
        self._written = self._capacity
        try:
            self._files.write_all(self._fd, [memoryview(_ZEROS_AHEAD)[:size]], at)
            self._files.fdatasync(self._fd)
        except OSError:
            return
        self._written = at + size

    def retire(self, number: int) -> None:
        """The messages of a segment are all gone: use its file again, or remove it. For the index thread.

        Raises OSError.
        """
        path = segment_path(self._directory, number)
        if len(self._retired) < _KEPT_FOR_REUSE and path.stat().st_size == self._segment_size:
            self._retired.append(number)
        else:
            self._files.unlink(path)

    def close(self) -> None:
        """Close the files. A segment that was not begun is there for the next start."""
        self._close()
        if self._spare is not None:
            self._files.close(self._spare.fd)
            self._spare = None

    def _prepared(self, size: int) -> _Spare:
        """The next segment, with room for `size` bytes in all, its directory entry durable."""
        spare = self._spare
        if spare is not None and spare.capacity >= size:
            return spare
        if spare is None:
            number = self.end.segment + 1
            path = segment_path(self._directory, number)
            is_used = bool(self._retired)
            if is_used:
                self._files.rename(segment_path(self._directory, self._retired.popleft()), path)
            fd = self._files.open(path, os.O_RDWR | os.O_CREAT)
            capacity = os.fstat(fd).st_size
            self._spare = spare = _Spare(number, fd, capacity, capacity if is_used else 0)
        try:
            if spare.capacity < size:
                self._allocate(spare, size)
            self._files.fsync_directory(self._directory)
        except OSError:
            self._drop_spare()
            raise
        return spare

    def _allocate(self, spare: _Spare, size: int) -> None:
        capacity = max(size, self._segment_size)
        try:
            self._files.allocate(spare.fd, capacity)
        except OSError as failure:
            # A disk that is nearly full may still have room for the removals that will empty it.
            capacity = -(-size // _LEAST_ALLOCATION) * _LEAST_ALLOCATION
            if failure.errno not in _NO_SPACE or capacity >= self._segment_size:
                raise
            self._files.truncate(spare.fd, 0)
            self._files.allocate(spare.fd, capacity)
        spare.capacity = capacity

    def _undo(self, failure: OSError) -> None:
        """A frame was not written, or nobody knows. Wipe it out, as the mail in it is not accepted."""
        if self._fd < 0:
            self._drop_spare()
            return
        try:
            if failure.errno in _NO_SPACE:
                self._files.write_all(self._fd, [_ZEROS], self.end.offset)
                return
            self._files.truncate(self._fd, self.end.offset)
        except OSError:
            pass  # a crash right now would bring the frame back, which is a duplicate at worst
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is None:
            return
        try:
            self._files.unlink(segment_path(self._directory, spare.number))
        except OSError:
            pass  # it is opened again, or removed by the next start
        self._files.close(spare.fd)


def _frame_head(salt: bytes, offset: int, operations: bytes, table: bytes, count: int, time_us: int) -> bytes:
    head = _FRAME_HEADER.pack(salt, len(operations), count, time_us, 0)[:_FRAME_HEADER_CHECKED]
    # The sum begins with the offset, so that a frame is one at its own place only.
    crc: int = extend(extend(extend(offset // PAGE, head), operations), table)
    return head + crc.to_bytes(4, "big")


def _segment_header(number: int, salt: bytes, before: Position) -> bytes:
    head = _SEGMENT_HEADER.pack(_MAGIC, number, salt, *before, 0)[:-4]
    return head + content_crc(head).to_bytes(4, "big")


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Frame:
    """One frame as it lies in its segment."""

    start: Position
    end: Position
    time_us: int
    operations: bytes
    blobs: list[BodyRef]


class Segment:
    """A segment that was begun, opened for reading. Its methods raise OSError when the disk does."""

    def __init__(self, fd: int, number: int, salt: bytes, before: Position, files: FileOps) -> None:
        self.number = number
        self.before = before
        self.size = os.fstat(fd).st_size
        self._fd = fd
        self._salt = salt
        self._files = files

    @classmethod
    def open(cls, directory: Path, number: int, files: FileOps) -> Segment | None:
        """The segment, or None when it does not exist or was never begun (or begun by a frame that was torn)."""
        try:
            fd = files.open(segment_path(directory, number), os.O_RDONLY)
        except FileNotFoundError:
            return None
        raw = files.pread(fd, _SEGMENT_HEADER.size, 0)
        if len(raw) == _SEGMENT_HEADER.size:
            magic, its_number, salt, segment, offset, _ = _SEGMENT_HEADER.unpack(raw)
            before = Position(segment, offset)
            if magic == _MAGIC and its_number == number and raw == _segment_header(number, salt, before):
                return cls(fd, number, salt, before, files)
        os.close(fd)
        return None

    @classmethod
    def without_header(cls, directory: Path, number: int, files: FileOps) -> Segment | None:
        """The segment although its header is damaged, by the salt of the first frame that can be read; None without.

        It may be the file of a segment that was retired. Raises OSError.
        """
        fd = files.open(segment_path(directory, number), os.O_RDONLY)
        segment = cls(fd, number, b"", Position(0, 0), files)
        for offset in range(PAGE, segment.size, PAGE):
            segment._salt = files.pread(fd, 8, offset)
            if any(segment._salt) and segment.frame(offset) is not None:
                return segment
        os.close(fd)
        return None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def sync(self) -> None:
        """What is read from it is on stable storage."""
        self._files.fdatasync(self._fd)

    def frame(self, offset: int) -> Frame | None:
        """The frame at `offset`; None when there is none, or only part of one. Contents are not looked at."""
        head = self._files.pread(self._fd, _FRAME_HEADER.size, offset)
        if len(head) < _FRAME_HEADER.size:
            return None
        salt, length, count, time_us, crc = _FRAME_HEADER.unpack(head)
        at = offset + _FRAME_HEADER.size + length + count * _BLOB.size
        if salt != self._salt or at > self.size:
            return None
        rest = self._files.pread(self._fd, length + count * _BLOB.size, offset + _FRAME_HEADER.size)
        if extend(extend(offset // PAGE, head[:_FRAME_HEADER_CHECKED]), rest) != crc:
            return None
        blobs = []
        for blob_length, blob_crc in _BLOB.iter_unpack(rest[length:]):
            blobs.append(BodyRef(self.number, at, blob_length, blob_crc))
            at += blob_length
        end = -(-at // PAGE) * PAGE
        return Frame(Position(self.number, offset), Position(self.number, end), time_us, rest[:length], blobs)

    def is_whole(self, frame: Frame) -> bool:
        """Whether the contents in a frame are there, too."""
        return all(content_crc(self.content(blob)) == blob.crc for blob in frame.blobs)

    def content(self, place: BodyRef) -> bytes:
        """The bytes at a place in this segment, whatever they are."""
        return self._files.pread(self._fd, place.length, place.offset)

    def raw(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        return self._files.pread(self._fd, size, offset)

    def next_frame(self, offset: int, limit: int) -> Frame | None:
        """The first frame that begins between `offset` and `limit`."""
        step = 256 * PAGE
        for start in range(offset, limit, step):
            pages = self._files.pread(self._fd, min(step, limit - start), start)
            for page in range(0, len(pages), PAGE):
                if pages.startswith(self._salt, page):
                    frame = self.frame(start + page)
                    if frame is not None:
                        return frame
        return None


def is_spare(directory: Path, number: int, files: FileOps) -> bool:
    """Whether a segment was made ready and never begun: it is empty, or the file of a segment that was retired.

    Raises OSError.
    """
    fd = files.open(segment_path(directory, number), os.O_RDONLY)
    try:
        raw = files.pread(fd, _SEGMENT_HEADER.size, 0)
    finally:
        files.close(fd)
    if len(raw) < _SEGMENT_HEADER.size or not any(raw):
        return True
    _, its_number, salt, segment, offset, _ = _SEGMENT_HEADER.unpack(raw)
    return its_number != number and raw == _segment_header(its_number, salt, Position(segment, offset))


def durable_frames(directory: Path, start: Position, end: Position, files: FileOps) -> Iterator[Frame]:
    """The frames between two places up to which the journal is known to be whole, also while it is written.

    Raises OSError, also when one of them cannot be read any more.
    """
    number, offset = start if start.segment else (1, PAGE)
    while (number, offset) < end:
        segment = Segment.open(directory, number, files)
        if segment is None:
            raise OSError(errno.EIO, f"{segment_path(directory, number)} is missing or damaged")
        try:
            stop = end.offset if number == end.segment else _end_of(directory, number, files)
            while offset < stop:
                frame = segment.frame(offset)
                if frame is None:
                    raise OSError(errno.EIO, f"{segment_path(directory, number)} is damaged at {offset}")
                yield frame
                offset = frame.end.offset
        finally:
            segment.close()
        number, offset = number + 1, PAGE


def _end_of(directory: Path, number: int, files: FileOps) -> int:
    """Where a segment ended, which the one after it tells."""
    following = Segment.open(directory, number + 1, files)
    if following is None:
        raise OSError(errno.EIO, f"{segment_path(directory, number + 1)} is missing or damaged")
    following.close()
    return following.before.offset
