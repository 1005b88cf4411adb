"""What it costs to make a message durable and to forget it again: the store, and the way it does not go.

    python bench/store.py                        the table
    python bench/store.py --kept                 the same for mail that stays in the queue
    python bench/store.py --delay 5              as on a disk whose sync takes 5 ms longer
    python bench/store.py --profile --batch 20   where the time goes, by function

Each message is accepted in one transaction and removed in another, with an event line each, as mail that goes straight
out; with `--kept` it stays, and all of it gets into the index. A batch is what is submitted between two syncs: N
accepts and the N removals of the batch before.

* `journal` is `mta.queue.store`: one frame of the journal and one `fdatasync` per batch, the index once a second.
* `index` is the obvious design: contents appended to a segment file, `fdatasync`, then the records put into LMDB and
  committed with sync, for the accepts; LMDB again, with sync, for the removals. One thread, no store around it: less
  than it would really cost.

CPU is user and system time of the whole process, for accept and removal together. `ours` is the part of it that is not
the kernel's writing and syncing: the same run with a journal that goes nowhere. A commit of LMDB counts as two syncs,
as it is one `fdatasync` of the pages and one synchronous write of the meta page.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import resource
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import lmdb

from mta.config.schema import Config
from mta.queue.encoding import pack_delivery, pack_message
from mta.queue.fileops import Buffer, FileOps
from mta.queue.ids import IdSource
from mta.queue.records import Delivery, Message, Recipient
from mta.queue.store import Store, Transaction

DOMAINS = 50
LMDB_SYNCS = 2
EVENT = b'{"id":"0","time":"2026-01-01T00:00:00.000000Z",' + b'"text":"2.0.0 Ok",' * 20 + b'"size":5000}'


@dataclass
class Cost:
    """Of one message, in microseconds."""

    wall: float
    cpu: float
    syncs: float


class Counted(FileOps):
    """Real operations, counted, with a slower sync if wanted."""

    def __init__(self, delay_s: float) -> None:
        self.syncs = 0
        self._delay_s = delay_s

    def fdatasync(self, fd: int) -> None:
        """One sync."""
        self.syncs += 1
        super().fdatasync(fd)
        if self._delay_s:
            time.sleep(self._delay_s)

    def commit(self, transaction: lmdb.Transaction) -> None:
        """A commit of the index."""
        self.syncs += LMDB_SYNCS
        super().commit(transaction)
        if self._delay_s:
            time.sleep(LMDB_SYNCS * self._delay_s)


class Nowhere(FileOps):
    """Writes that cost nothing."""

    syncs = 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Nothing is written."""
        return sum(map(len, buffers))

    def fdatasync(self, fd: int) -> None:
        """Nothing to sync."""


def clock_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def mail(count: int, size: int) -> list[Delivery]:
    """Messages of one recipient each, made before anything is measured."""
    content = os.urandom(size)
    ids = IdSource(0, 0, clock_us)
    deliveries = []
    for n in range(count):
        domain = f"d{n % DOMAINS}.test"
        message = Message(ids.next(), "sender@example.org", clock_us(), content, 400, "<20260101.1@example.org>",
                          origin="smtp 127.0.0.1:40000 client.example.org", size=size, deliveries=1)
        deliveries.append(Delivery(message, 0, domain, domain, [Recipient(f"u{n}@{domain}")], clock_us()))
    return deliveries


def measured(work: Callable[[], None], messages: int, syncs: Callable[[], int]) -> Cost:
    """Run `work` and say what it cost per message."""
    gc.collect()
    gc.freeze()  # as a worker does
    before = syncs()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter()
    work()
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF)
    gc.unfreeze()
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return Cost(wall / messages * 1e6, cpu / messages * 1e6, (syncs() - before) / messages)


def batches(deliveries: list[Delivery], batch: int, kept: bool) -> Iterator[tuple[list[Delivery], list[Delivery]]]:
    """What is accepted and what is removed, turn by turn."""
    before: list[Delivery] = []
    for start in range(0, len(deliveries) + (0 if kept else batch), batch):
        now = deliveries[start:start + batch]
        yield now, before
        before = [] if kept else now


def journal(directory: Path, deliveries: list[Delivery], batch: int, kept: bool, files: Counted | Nowhere,
            profile: cProfile.Profile | None = None) -> Cost:
    """The store as it is."""
    woken = threading.Event()
    directory.mkdir()
    store = Store.open(directory / "000", Config(hostname="bench.example.org"), 0, woken.set, clock_us=clock_us,
                       files=files)
    left = 0

    def done(error: object) -> None:
        nonlocal left
        assert error is None
        left -= 1

    def work() -> None:
        nonlocal left
        for accepted, removed in batches(deliveries, batch, kept):
            left = len(accepted) + len(removed)
            for delivery in accepted:
                store.submit(Transaction([(delivery.message, [delivery])], events=[EVENT]), done)
            for delivery in removed:
                store.submit(Transaction(removes=[delivery], events=[EVENT]), done)
            store.flush()
            while left:
                woken.wait()
                woken.clear()
                store.collect()
        if kept:
            store.list_marks(b"", 0, lambda marks: done(None))  # answered after a checkpoint
            left = 1
            while left:
                woken.wait()
                woken.clear()
                store.collect()

    try:
        if profile is not None:
            profile.enable()
        return measured(work, len(deliveries), lambda: files.syncs)
    finally:
        if profile is not None:
            profile.disable()
        store.close()


def index(directory: Path, deliveries: list[Delivery], batch: int, kept: bool, files: Counted) -> Cost:
    """Segments for contents, LMDB for everything else, both synced for every batch."""
    directory.mkdir()
    env = lmdb.open(str(directory / "queue.mdb"), map_size=1 << 36, max_dbs=4, lock=False, readahead=False)
    messages, schedule = env.open_db(b"messages"), env.open_db(b"schedule")
    segment = files.open(directory / "bodies.seg", os.O_RDWR | os.O_CREAT)
    events = files.open(directory / "events.jsonl", os.O_RDWR | os.O_CREAT)

    def keys(delivery: Delivery) -> tuple[bytes, bytes]:
        number, queue = delivery.message.id, hash(delivery.queue) & 0xFFFF
        return struct.pack(">QH", number, 0), struct.pack(">QQQ", queue, delivery.due_us, number)

    def work() -> None:
        end = length = 0
        for accepted, removed in batches(deliveries, batch, kept):
            if accepted:
                contents = [delivery.message.content or b"" for delivery in accepted]
                files.write_all(segment, contents, end)
                files.fdatasync(segment)
                end += sum(map(len, contents))
            for group, put in ((accepted, True), (removed, False)):
                if not group:
                    continue
                with env.begin(write=True) as txn:
                    if put:
                        records = sorted(
                            (keys(d), pack_message(d.message) + pack_delivery(d)) for d in group)
                        txn.cursor(messages).putmulti([(key, record) for (key, _), record in records])
                        txn.cursor(schedule).putmulti(sorted((due, b"") for (_, due), _ in records))
                    else:
                        for delivery in group:
                            key, due = keys(delivery)
                            txn.delete(key, db=messages)
                            txn.delete(due, db=schedule)
                files.syncs += LMDB_SYNCS
                if files._delay_s:
                    time.sleep(LMDB_SYNCS * files._delay_s)
            lines = (EVENT + b"\n") * (len(accepted) + len(removed))
            files.write_all(events, [lines], length)
            length += len(lines)

    try:
        return measured(work, len(deliveries), lambda: files.syncs)
    finally:
        env.close()
        os.close(segment)
        os.close(events)


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A directory that goes away."""
    directory = Path(tempfile.mkdtemp(prefix="mta-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def middle(costs: list[Cost]) -> Cost:
    """The median of each."""
    return Cost(median(c.wall for c in costs), median(c.cpu for c in costs), median(c.syncs for c in costs))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 10, 20, 50, 200], metavar="N", help="batch sizes")
    parser.add_argument("--messages", type=int, default=20_000, help="messages per run")
    parser.add_argument("--size", type=int, default=5000, help="bytes of each message")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the median is shown")
    parser.add_argument("--kept", action="store_true", help="accept only")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="milliseconds added to every sync")
    parser.add_argument("--directory", type=Path, help="where to write; the system's temporary directory by default")
    parser.add_argument("--profile", action="store_true", help="print a profile of the hub's thread instead")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as a worker does, too
    gc.set_threshold(20_000, 20, 50)

    if options.profile:
        profile = cProfile.Profile()
        with scratch(options.directory) as directory:
            journal(directory / "spool", mail(options.messages, options.size), options.batch[0],
                    options.kept, Nowhere(), profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return

    what = "accepted" if options.kept else "accepted and removed"
    print(f"{options.messages} messages of {options.size} bytes, {what}; "
          f"median of {options.runs} runs; microseconds per message")
    print(f"{'batch':>5} | {'journal':>8} {'CPU':>6} {'ours':>6} {'syncs':>6} | {'index':>8} {'CPU':>6} {'syncs':>6} | "
          f"{'wall':>5} {'CPU':>5}")
    for batch in options.batch:
        count = max(batch, min(options.messages, batch * 1000))
        ours, free, theirs = [], [], []
        for _ in range(options.runs):
            for costs, way, files in (
                (ours, journal, Counted(options.delay / 1000)), (free, journal, Nowhere()),
                (theirs, index, Counted(options.delay / 1000)),
            ):
                with scratch(options.directory) as directory:
                    costs.append(way(directory / "spool", mail(count, options.size), batch, options.kept, files))
        a, nowhere, b = middle(ours), middle(free), middle(theirs)
        print(f"{batch:5} | {a.wall:8.1f} {a.cpu:6.1f} {nowhere.cpu:6.1f} {a.syncs:6.3f} | "
              f"{b.wall:8.1f} {b.cpu:6.1f} {b.syncs:6.3f} | {b.wall / a.wall:4.1f}x {b.cpu / a.cpu:4.1f}x")


if __name__ == "__main__":
    main()
