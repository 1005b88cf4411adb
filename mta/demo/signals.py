"""Ctrl-C, SIGTERM and SIGHUP as something to wait for, so that they interrupt the demo only where it can clean up."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """While it is entered, signals wake `wait` instead of ending the process. Main thread only.

    The second one raises KeyboardInterrupt, in case the first did not get through; after `hold` none does.
    """

    def __init__(self) -> None:
        self.count = 0
        self._held = False
        self._previous: dict[signal.Signals, Any] = {}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            os.write(self._writer, b"!")
        elif not self._held:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From now on signals are only counted: the demo is cleaning up."""
        self._held = True

    def wait(self, seconds: float | None, *more: int) -> bool:
        """Wait for a signal; whether there was one. Descriptors in `more` that can be read end the wait, too."""
        if not self.count:
            select.select([self._reader, *more], [], [], seconds)
        return self.count > 0
