"""Accepted messages as files of a Maildir, if that is asked for.

The envelope stands before the header section as `X-Sender` and `X-Receiver`, so that a captured file can be put into
a pickup directory as it is.
"""

from __future__ import annotations

import os
import time

from mta.sandbox.ledger import DomainCounts


class Capture:
    """Writes messages into `directory`, which is made a Maildir."""

    def __init__(self, directory: str) -> None:
        """Raises OSError when the directory cannot be made."""
        for name in ("cur", "new", "tmp"):
            os.makedirs(os.path.join(directory, name), exist_ok=True)
        self._directory = directory
        self._number = 0

    def write(self, sender: bytes, recipients: list[tuple[bytes, DomainCounts]], content: bytes) -> None:
        """Write one message. Not synced: the sandbox promises nothing across a crash."""
        self._number += 1
        name = f"{time.time():.6f}.{os.getpid()}_{self._number}.sandbox"
        path = os.path.join(self._directory, "tmp", name)
        envelope = [b"X-Sender: <%b>\r\n" % sender, *(b"X-Receiver: <%b>\r\n" % address for address, _ in recipients)]
        with open(path, "wb") as file:
            file.writelines(envelope)
            file.write(content)
        os.rename(path, os.path.join(self._directory, "new", name))
