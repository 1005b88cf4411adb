"""A real `mta run` whose worker gets no more memory for a while: what needs it is refused, the rest goes on."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import smtplib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.faults.books import assert_balanced, assert_no_bug, queued
from tests.integration.support import Injector, Mta, message

ROUNDS = int(os.environ.get("MTA_FAULT_ROUNDS", "1"))
PATIENCE_S = 60.0
LARGE = 30_000_000
LARGE_NUMBERS = 1_000_000


def data_size(pid: int) -> int:
    """What RLIMIT_DATA counts."""
    found = re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def limit_data(pid: int, size: int) -> None:
    """Let a process have no more private memory than `size`, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))


class Heavy(threading.Thread):
    """Sends large messages one after the other, until it is told to stop."""

    def __init__(self, mta: Mta, first: int) -> None:
        super().__init__(daemon=True)
        self._mta = mta
        self._next = first
        self.accepted: set[int] = set()
        self.refused = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        """Send; a refusal of any kind is counted."""
        while not self.stopping.is_set():
            number, self._next = self._next, self._next + 1
            to = f"u{number}@large.test"
            try:
                with smtplib.SMTP(*self._mta.smtp, timeout=PATIENCE_S) as client:
                    client.sendmail("", [to], message(number, to, LARGE))
                self.accepted.add(number)
            except (OSError, smtplib.SMTPException):
                self.refused += 1
                self.stopping.wait(0.05)


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_no_memory_for_large_messages(round_: int, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Large messages find no memory: their sessions end or are told to come back, and small mail goes on. Should
    memory fail elsewhere the worker ends and is there again at once, not half dead. With memory large mail is taken."""
    with make_mta(workers=1) as mta:
        worker = mta.children()["worker"][0]
        small = Injector(mta, [f"d{number}.test" for number in range(5)], sessions=2)
        heavies = [Heavy(mta, LARGE_NUMBERS * (one + 1)) for one in range(3)]
        small.start(1 << 30)
        mta.wait_until(lambda: len(small.accepted) > 50, "mail", PATIENCE_S)
        limit_data(worker, data_size(worker) + LARGE)
        for heavy in heavies:
            heavy.start()
        mta.wait_until(lambda: sum(heavy.refused for heavy in heavies) >= 5, "refusals", PATIENCE_S)
        had = len(small.accepted)
        mta.wait_until(lambda: len(small.accepted) > had + 50, "small mail meanwhile", PATIENCE_S)
        limit_data(worker, resource.RLIM_INFINITY)
        taken = sum(len(heavy.accepted) for heavy in heavies)
        mta.wait_until(lambda: sum(len(heavy.accepted) for heavy in heavies) > taken + 1, "large mail", PATIENCE_S)
        for heavy in heavies:
            heavy.stopping.set()
        for heavy in heavies:
            heavy.join(PATIENCE_S)
        small.finish()
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
        restarts = mta.status()["family"]["members"][0]["restarts"]
        assert (mta.children()["worker"] == [worker]) == (restarts == 0)
    accepted = small.accepted.union(*(heavy.accepted for heavy in heavies))
    assert_balanced(mta, accepted, sandbox.received())
    told = [line for line in mta.log if "memory" in line]
    print(restarts, told)
    assert 1 <= len(told) < 10
    assert_no_bug(mta)
    assert verify_spool(Path(mta.config["spool"])) == []
