"""Native threads, without and with gevent around them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mta.queue.native import Completions, WorkThread, run


class Loop:
    """A thread and the hub that it wakes."""

    def __init__(self) -> None:
        self.completions: Completions = Completions()
        self.woken = threading.Event()
        self.thread = WorkThread(self.completions, self.woken.set)

    def next(self) -> None:
        """Wait for a wake, and run what has completed."""
        assert self.woken.wait(60)
        self.woken.clear()
        run(self.completions)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A thread at work."""
    loop = Loop()
    yield loop
    loop.thread.stop()


def test_work_is_done_in_order(loop: Loop) -> None:
    """Results come in the order in which the work was posted."""
    results: list[int] = []
    for n in range(100):
        loop.thread.post(lambda n=n: n, results.append)
    while len(results) < 100:
        loop.next()
    assert results == list(range(100))


def test_work_that_fails_is_raised_on_the_hub(loop: Loop) -> None:
    """The thread goes on with the next piece."""
    results: list[int] = []
    loop.thread.post(lambda: 1 // 0, results.append)
    loop.thread.post(lambda: 5, results.append)
    loop.thread.call(lambda: None)
    with pytest.raises(ZeroDivisionError):
        run(loop.completions)
    run(loop.completions)
    assert results == [5]


def test_the_alarm_rings_once_and_can_be_moved(loop: Loop) -> None:
    """There is one alarm; it rings when the thread is idle at that time, and not again."""
    rung: list[float] = []
    now = time.monotonic()
    loop.thread.set_alarm(now + 3600, lambda _: rung.append(-1.0))
    loop.thread.set_alarm(now + 0.02, lambda _: rung.append(time.monotonic()))
    while not rung:
        loop.next()
    assert rung[0] >= now + 0.02
    assert loop.thread.call(lambda: 7) == 7
    assert len(rung) == 1


def test_call_waits_and_raises(loop: Loop) -> None:
    """From another thread, a piece of work can be waited for."""
    assert loop.thread.call(lambda: "x") == "x"
    with pytest.raises(KeyError):
        loop.thread.call(lambda: {}[1])


def test_stop_finishes_what_was_posted(loop: Loop) -> None:
    """After `stop` all work is done; stopping twice does no harm."""
    done: list[int] = []
    for n in range(50):
        loop.thread.post(lambda n=n: done.append(n))
    loop.thread.stop()
    loop.thread.stop()
    assert done == list(range(50))


GEVENT_PROGRAM = """
from gevent import monkey
monkey.patch_all()
import time, tempfile, gevent
from pathlib import Path
from gevent.event import AsyncResult
from gevent.hub import get_hub
from mta.config.schema import Config
from mta.queue.fileops import FileOps
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.store import Store, Transaction
native_lock = monkey.get_original("_thread", "allocate_lock")
waiting = []  # syncs that wait for the hub
syncs = []  # whether the hub went on during each

class Slow(FileOps):
    in_use = False

    def fdatasync(self, fd):
        if self.in_use:
            gate = native_lock()
            gate.acquire()
            waiting.append(gate)
            syncs.append(gate.acquire(timeout=60))

def go_on():
    while True:
        gevent.sleep(0.001)
        while waiting:
            waiting.pop().release()

watcher = get_hub().loop.async_()
clock_us = lambda: time.time_ns() // 1000
directory = Path(tempfile.mkdtemp(), "000")
files = Slow()
store = Store.open(directory, Config(hostname="x"), 0, watcher.send, clock_us=clock_us, files=files)
files.in_use = True
watcher.start(store.collect)

def send(n):
    message = Message(n << 10, "", clock_us(), b"x" * 5000)
    delivery = Delivery(message, 0, "a.test", "a.test", [Recipient("u@a.test")], clock_us())
    done = AsyncResult()
    store.submit(Transaction([(message, [delivery])]), done.set)
    store.flush()
    assert done.get(timeout=20) is None
    message.content = None
    assert get_hub().threadpool.apply(store.body, (message,)) == b"x" * 5000

gevent.spawn(go_on)
gevent.joinall([gevent.spawn(send, n) for n in range(1, 30)], raise_error=True)
found = AsyncResult()
store.list_queues("", 10, lambda queues, totals: found.set((queues, totals)))
queues, totals = found.get(timeout=20)
assert [queue.deliveries for queue in queues] == [29]
assert totals.deliveries == 29
files.in_use = False
store.close()
assert syncs and all(syncs), syncs
"""


def test_the_hub_goes_on_while_the_disk_is_slow() -> None:
    """In a process that gevent has patched, threads are native: a sync that waits for a greenlet comes to its end (I6).

    A sync on the hub would keep that greenlet from running, and run into its limit.
    """
    result = subprocess.run([sys.executable, "-c", GEVENT_PROGRAM], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
