"""A native thread that does pieces of work in order, also in a process where gevent has patched `threading`.

The disk must never be waited for on the gevent hub, and the waiting must be a native one: a patched lock or queue in
a foreign thread would start a second hub there. So threads and queues are taken from before the patch.

The threads call no logging and no `threading` function (both end in patched locks). What they find out goes back to
the hub as the result of a piece of work.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any, Final, TypeVar


def _original(module: str, name: str) -> Any:
    """`module.name` as it was before gevent patched it, if it did."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(__import__(module), name)


_start_new_thread: Final = _original("_thread", "start_new_thread")
allocate_lock: Final = _original("_thread", "allocate_lock")
NativeQueue: Final = _original("queue", "SimpleQueue")

_LONGEST_WAIT_S: Final = 86_400.0  # the kernel's timeouts end somewhere

_T = TypeVar("_T")

Completions = deque[tuple[Callable[[Any], None], Any]]
"""What threads have finished, in order: a function to call on the hub, and its argument."""


def run(completions: Completions) -> None:
    """Call what has completed, including what completes meanwhile. For the hub."""
    while completions:
        deliver, result = completions.popleft()
        deliver(result)


class WorkThread:
    """Does pieces of work one after the other, in a thread of its own.

    Each result is put on `completions`, together with the function that takes it, and the hub is told by `wake`,
    which must be safe to call from any thread. A piece of work that raises ends nothing: its exception is raised
    again on the hub, where the completion is run.
    """

    def __init__(self, completions: Completions, wake: Callable[[], None]) -> None:
        self._completions = completions
        self._wake = wake
        self._work = NativeQueue()
        self._alarm_at: float | None = None
        self._on_alarm: Callable[[Any], None] = _ignore
        self._ended = allocate_lock()
        self._ended.acquire()
        _start_new_thread(self._run, ())

    def post(self, work: Callable[[], Any], deliver: Callable[[Any], None] | None = None) -> None:
        """Do `work` after all that was posted before; then `deliver` gets its result on the hub."""
        self._work.put((work, deliver))

    def set_alarm(self, at: float, ring: Callable[[Any], None]) -> None:
        """Complete with `ring` at `at` (monotonic seconds), as soon as the thread has nothing better to do.

        There is one alarm: setting it again moves it.
        """

        def move() -> None:
            self._alarm_at = at
            self._on_alarm = ring

        self._work.put((move, None))

    def call(self, work: Callable[[], _T]) -> _T:
        """Do `work` in its turn and wait for the result, natively. From any other thread. Raises what it raises."""
        done = allocate_lock()
        done.acquire()
        results: list[_T] = []
        errors: list[BaseException] = []

        def answer() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                done.release()

        self._work.put((answer, None))
        done.acquire()
        if errors:
            raise errors[0]
        return results[0]

    def stop(self) -> None:
        """Wait until all posted work is done and the thread has ended."""
        self._work.put(None)
        with self._ended:
            pass
        self._work.put(None)  # for a second stop

    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            self._ended.release()

    def _step(self) -> bool:
        try:
            if self._alarm_at is None:
                item = self._work.get()
            else:
                item = self._work.get(timeout=min(max(0.0, self._alarm_at - time.monotonic()), _LONGEST_WAIT_S))
        except Empty:
            if self._alarm_at is not None and time.monotonic() >= self._alarm_at:
                self._alarm_at = None
                self._complete(self._on_alarm, None)
            return True
        if item is None:
            return False
        work, deliver = item
        try:
            result = work()
        except BaseException as error:  # the hub raises it, with this traceback
            self._complete(_raise, error)
            return True
        if deliver is not None:
            self._complete(deliver, result)
        return True

    def _complete(self, deliver: Callable[[Any], None], result: Any) -> None:
        self._completions.append((deliver, result))
        self._wake()


def _raise(error: BaseException) -> None:
    raise error


def _ignore(_: Any) -> None:
    """The alarm that was never set."""
