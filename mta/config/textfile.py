"""Reads a file that is written in YAML: the whole of it as text, or the one problem that it has as a file."""

from __future__ import annotations

import os
import stat

from mta.config import tree
from mta.config.problems import Problem


def file_text(path: str) -> tuple[str, Problem | None]:
    """What is in the file `path`, or what is wrong with it as a whole."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(tree.MAX_BYTES + 1)
    except FileNotFoundError:
        return "", Problem(path, 0, 0, "there is no such file")
    except IsADirectoryError:
        return "", Problem(path, 0, 0, "is a directory, expected a file")
    except (OSError, ValueError) as error:
        return "", Problem(path, 0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if os.geteuid() == 0 and stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWOTH:
        return "", Problem(path, 0, 0, "anybody may write to it and root would obey it, expected mode 0644 or less")
    if len(data) > tree.MAX_BYTES:
        return "", Problem(path, 0, 0, f"larger than {tree.MAX_BYTES} bytes")
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = tree.position(before, len(before))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8, expected a file in UTF-8"
        return "", Problem(path, line, column, message)
