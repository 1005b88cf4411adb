"""When a worker gives memory back, by a given count of processor time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mta.control import supervisor
from mta.control.thrift import LOOK_S, QUIET, WORKED_S, Thrift, give_back, trimmer


class Cpu:
    """Processor time, as told."""

    used_s = 7.0

    def __call__(self) -> float:
        return self.used_s


def test_memory_is_given_back_in_the_quiet_after_work() -> None:
    """Not while there is much to do, not when nothing was done, and once for what was done."""
    cpu = Cpu()
    thrift = Thrift(cpu)

    def due_after(used_s: float) -> bool:
        cpu.used_s += used_s
        return thrift.is_due()

    assert not due_after(0.0)
    assert not due_after(LOOK_S)  # a storm
    assert not due_after(QUIET * LOOK_S + 0.1)
    assert due_after(0.01)
    assert not due_after(0.01)
    assert not due_after(WORKED_S / 2)
    assert due_after(WORKED_S / 2)  # a little work adds up


NO_THREAD = """
import gevent
from gevent.threadpool import ThreadPool
from mta.control import thrift
thrift.LOOK_S, thrift.WORKED_S = 0.01, 0.0
tries = []

def no_memory(pool, call):
    tries.append(call)
    raise RuntimeError("can't start new thread")

ThreadPool.spawn = no_memory
one = thrift.Thrift(lambda: 0.0)
one.start()
while len(tries) < 2:
    gevent.sleep(0.01)
one.stop()
"""


def test_no_thread_is_no_bug() -> None:
    """When there is no memory for a thread it is tried again another time, without a traceback."""
    done = subprocess.run([sys.executable, "-c", NO_THREAD], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True, timeout=60, check=True)
    assert done.stderr == ""


FULL_POOL = """
import threading, gevent
from gevent.hub import get_hub
from mta.control import thrift
thrift.LOOK_S, thrift.WORKED_S = 0.01, 0.0
get_hub().threadpool.maxsize = 1
busy, done = threading.Event(), threading.Event()
thrift.give_back = done.set
for _ in range(3):
    gevent.spawn(get_hub().threadpool.spawn, busy.wait, 10)
gevent.sleep(0.05)
one = thrift.Thrift(lambda: 0.0)
one.start()
gevent.sleep(0.1)
assert not done.is_set()
busy.set()
while not done.is_set():
    gevent.sleep(0.01)
one.stop()
"""


def test_a_busy_pool_of_threads_is_waited_for() -> None:
    """Memory is given back when a thread is free; until then nothing fails on the event loop."""
    done = subprocess.run([sys.executable, "-c", FULL_POOL], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")


def test_an_operator_chooses_the_number_of_heaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of it is left alone; without a word, a child has one for all threads."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert supervisor._child_environment()["MALLOC_ARENA_MAX"] == "1"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert supervisor._child_environment()["MALLOC_ARENA_MAX"] == "4"


def test_holes_go_back_to_the_system() -> None:
    """What is freed between things that stay is no longer resident after it (glibc)."""
    if trimmer() is None:
        pytest.skip("the C library has no malloc_trim")
    blocks = [bytes(20_000) for _ in range(4000)]
    kept = blocks[::50]
    del blocks
    before = _resident()
    give_back()
    assert _resident() < before - 40_000_000
    assert len(kept) == 80


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
