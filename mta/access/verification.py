"""Checks passwords in threads, a bounded number at once, and remembers for a while which were right.

Bulk senders connect a thousand times an hour with the same password; its hash, which takes 20 ms, is computed once in a
while only. What is remembered is a keyed hash of user, password and stored hash: with a key that dies with the process
nothing in memory tells a password, and another password, or another entry of the user, is not the same.

The answer comes by a callback on the hub. Nothing here knows gevent: `wake` is called from a thread.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Final

from mta.access import passwords
from mta.queue.native import Completions, WorkThread, run

WAITING: Final = 500
"""Different checks that may wait for a thread, some ten seconds of work; more are told to come again."""
REMEMBERED: Final = 10_000

log = logging.getLogger(__name__)

Answer = Callable[[bool | None], None]
"""Is told whether the password was right; None: that could not be found out now."""

Wanted = Callable[[], bool]
"""Whether a check is still wanted when its turn comes."""


class Verifier:
    """The threads and the memory of one process."""

    def __init__(self, wake: Callable[[], None], threads: int, remembered_s: float) -> None:
        """`collect` is to be called on the hub after each `wake`, which must be safe to call from any thread."""
        self._wake = wake
        self._completions: Completions = deque()
        self._threads: list[WorkThread] = []
        self._idle: list[WorkThread] = []
        self._waiting: deque[tuple[str, str, bytes, bool]] = deque()
        # Who is to be told of each check that waits or is computed.
        self._asked: dict[bytes, list[tuple[Answer, Wanted]]] = {}
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self.computed = 0
        """Hashes that were computed, for tests and the curious."""
        self.configure(threads, remembered_s)

    def configure(self, threads: int, remembered_s: float) -> None:
        """Other limits. Threads are not taken back before the process ends."""
        self._most = threads
        self._remembered_s = remembered_s

    def verify(self, user: str, password: str, stored: str, answer: Answer, *, stand_in: str = "",
               wanted: Wanted = lambda: True) -> None:
        """Check a password against a hash; `answer` is called at once or later. Without a hash, as that of a user who
        does not exist, `stand_in` is computed, and it is wrong. Who asks the same at the same time shares a check: a
        sender that opens all its connections at once. What nobody wants any more is answered None at its turn."""
        mark = hmac.digest(self._key, "\0".join((user, stored, password)).encode(), "sha256")
        if stored and self._right.get(mark, 0.0) > time.monotonic():
            answer(True)
        elif mark in self._asked:
            self._asked[mark].append((answer, wanted))
        elif len(self._waiting) >= WAITING:
            answer(None)
        else:
            self._asked[mark] = [(answer, wanted)]
            self._waiting.append((password, stored or stand_in, mark, bool(stored)))
            self._begin()

    def _begin(self) -> None:
        while self._waiting and (self._idle or len(self._threads) < self._most):
            password, stored, mark, exists = self._waiting.popleft()
            if not any(wanted() for _, wanted in self._asked[mark]):
                self._answer(mark, None)
                continue
            if self._idle:
                thread = self._idle.pop()
            else:
                passwords.load()
                thread = WorkThread(self._completions, self._wake)
                self._threads.append(thread)
            self.computed += 1
            thread.post(partial(_right_or_error, stored, password), partial(self._verified, thread, mark, exists))

    def _verified(self, thread: WorkThread, mark: bytes, exists: bool, right: bool | Exception) -> None:
        self._idle.append(thread)
        try:
            if isinstance(right, Exception):
                self._answer(mark, None)
                raise right
            if right and exists and self._remembered_s:
                self._right[mark] = time.monotonic() + self._remembered_s
                self._right.move_to_end(mark)
                if len(self._right) > REMEMBERED:
                    self._right.popitem(last=False)
            self._answer(mark, right and exists)
        finally:
            self._begin()  # after the answers: what was wrong may make others unwanted

    def _answer(self, mark: bytes, right: bool | None) -> None:
        for answer, _ in self._asked.pop(mark, ()):
            answer(right)

    def collect(self) -> None:
        """Call back who waited for what is done. What goes wrong with one is in the log, and costs no other one."""
        while self._completions:
            try:
                run(self._completions)
            except Exception:
                log.exception("bug: a password could not be checked")

    def close(self) -> None:
        """End the threads when they have done what they are at; nobody is answered any more."""
        self._waiting.clear()
        self._asked.clear()
        for thread in self._threads:
            thread.stop()


def _right_or_error(stored: str, password: str) -> bool | Exception:
    """In a thread."""
    try:
        return passwords.verify(stored or passwords.DUMMY, password)
    except MemoryError:
        return MemoryError("no memory to check a password")
    except Exception as error:
        return error
