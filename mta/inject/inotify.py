"""Ask the kernel to tell when something is moved into a directory: inotify(7), by ctypes.

Only what the spool directory needs: a descriptor that becomes readable, and one call that empties it. No threads, no
gevent; the caller waits for the descriptor as it likes.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_IN_MOVED_TO: Final = 0x80
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_IN_UNMOUNT: Final = 0x2000
_IN_IGNORED: Final = 0x8000
_IN_ONLYDIR: Final = 0x1000000
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_BUFFER: Final = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Watches one directory. Raises OSError when the kernel gives no watch (`fs.inotify.max_user_instances`)."""

    def __init__(self, directory: str) -> None:
        descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise _error("inotify_init1")
        mask = _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
        if _libc.inotify_add_watch(descriptor, os.fsencode(directory), mask) < 0:
            error = _error(directory)
            os.close(descriptor)
            raise error
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Readable when there is something to `drain`."""
        return self._descriptor

    def drain(self) -> bool:
        """Take all that was reported. False when the directory itself is gone, so that this watch sees nothing more.

        What moved in is not told: the caller looks into the directory anyway, and so an overflow of the kernel's
        queue changes nothing.
        """
        alive = True
        while True:
            try:
                data = os.read(self._descriptor, _BUFFER)
            except BlockingIOError:
                return alive
            offset = 0
            while offset < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, offset)
                if mask & (_IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT | _IN_IGNORED):
                    alive = False
                offset += _EVENT.size + length

    def close(self) -> None:
        """Give the watch back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
