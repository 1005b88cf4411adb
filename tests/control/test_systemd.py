"""What systemd is told, when it does not listen at once."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from mta.control import systemd
from mta.control.systemd import Notifier


def test_a_change_of_state_waits_for_a_manager_that_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket full of words that nobody has read yet loses no READY=1; what is said often is not waited for."""
    monkeypatch.setattr(systemd, "TELLING_S", 60.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10.0)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(1000):  # more than any system keeps
            notifier.alive()
        teller = threading.Thread(target=notifier.ready, args=("all is well",))
        teller.start()
        teller.join(0.1)  # had it not waited, it would be over
        heard = []
        while not any(word.startswith(b"READY") for word in heard):
            heard.append(manager.recv(4096))
        teller.join()
        assert heard[-1] == b"READY=1\nSTATUS=all is well"
        assert 0 < heard.count(b"WATCHDOG=1") < 1000


def test_a_manager_that_is_stuck_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while nobody waits for it any more, and the wait is none that takes the processor."""
    monkeypatch.setattr(systemd, "TELLING_S", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(1000):
            notifier.alive()
        before_s = time.thread_time()
        notifier.ready("all is well")
        notifier.stopping("stopping", 60.0)
        assert time.thread_time() - before_s < 0.2
