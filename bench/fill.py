"""Fill a spool with waiting mail, by the store itself: many times as fast as by SMTP, and the same on disk.

    python -m bench.fill --spool DIR --queued 1000000 --domains 50 --shards 2

Made for an MTA that is not running. Message N goes to `uN@dK.dead`, or another `--zone`, with K = N modulo the number
of domains; messages take turns over the shards, each of which a process of its own fills in transactions of 500.
Everything is there that acceptance and one failed attempt leave: content, records, events, attempts. Deliveries are
due one after the other within `--spread` seconds from now; 0 is all of them at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.programs import ROOT, environment
from mta.config.schema import Config
from mta.control.spool import check_version, make_directory
from mta.queue import events
from mta.queue.ids import IdSource
from mta.queue.records import Attempt, Delivery, Message, Recipient, queue_name
from mta.queue.store import Store, StoreError, Transaction
from mta.smtp.reply import Reply

BATCH = 500
_AHEAD = 4
"""Batches given to the store that are not durable yet."""
_ADDRESS, _PORT = "127.0.0.9", 25
_REPLY = Reply(451, "4.3.0", ("try again later",))
_LINE = b"It is the content of a test, seventy-six characters wide, and means nothing.\r\n"
_HEADER = (b"Received: from source.test ([127.0.0.1]) by mta.bench.test with ESMTP\r\n"
           b"From: Bulk Sender <news@sender.test>\r\nSubject: waiting\r\n"
           b"Date: Mon, 05 Jan 2026 11:00:00 +0000\r\nMessage-ID: <waiting.bench@sender.test>\r\n")


class FillError(Exception):
    """The spool could not be filled."""


def fill(spool: Path, queued: int, domains: int, shards: int, *, size: int = 5000, spread_s: int = 3600,
         zone: str = "dead", tenant: str = "", first: int = 0) -> float:
    """Put `queued` messages into a spool that no MTA runs on; the seconds that it took. Raises FillError."""
    began_s = time.monotonic()
    make_directory(str(spool), "spool", None)
    check_version(str(spool))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.fill", "--spool", str(spool), "--queued", str(queued), "--domains",
             str(domains), "--shards", str(shards), "--size", str(size), "--spread", str(spread_s), "--shard", str(n),
             "--zone", zone, "--tenant", tenant, "--first", str(first)],
            env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True)
        for n in range(shards)
    ]
    said = [child.communicate()[1] for child in children]
    for child, text in zip(children, said, strict=True):
        if child.returncode:
            raise FillError(f"bench.fill ended with {child.returncode}: {text.strip()[-500:]}")
    return time.monotonic() - began_s


def waiting(shard: int, shards: int, queued: int, domains: int, size: int, spread_s: int, ids: IdSource,
            zone: str = "dead", tenant: str = "", first: int = 0) -> Iterator[tuple[Delivery, list[bytes]]]:
    """The deliveries of one shard, each with its events."""
    content = _HEADER + b"\r\n" + _LINE * max((size - len(_HEADER)) // len(_LINE), 1)
    now_us = _clock_us()
    arrival_us = now_us - 600 * 1_000_000
    for number in range(shard, queued, shards):
        domain = f"d{number % domains}.{zone}"
        message = Message(ids.next(), "bounce@sender.test", arrival_us, content, len(_HEADER),
                          "<waiting.bench@sender.test>", origin="smtp 127.0.0.1:40000 source.test",
                          tenant=tenant, size=len(content), deliveries=1)
        due_us = now_us + spread_s * 1_000_000 * number // queued
        queue = queue_name(domain, tenant)
        delivery = Delivery(message, 0, queue, domain, [Recipient(f"u{first + number}@{domain}")], arrival_us)
        arrived = events.received(message, [delivery])
        remote = events.Remote(domain, f"mx.{domain}", _ADDRESS)
        failed = events.deferred(delivery, delivery.recipients, _REPLY, remote, failure="message", kind="temporary",
                                 rule="", attempt=1, time_us=arrival_us, duration_s=0.1, next_us=due_us)
        delivery.due_us, delivery.attempts = due_us, 1
        delivery.history.append(Attempt(arrival_us, f"mx.{domain} [{_ADDRESS}]:{_PORT}", str(_REPLY)))
        yield delivery, [arrived, failed]


def fill_shard(spool: Path, shard: int, shards: int, queued: int, domains: int, size: int, spread_s: int, zone: str,
               tenant: str, first: int) -> None:
    """Fill one shard. Raises StoreError."""
    directory = spool / "shards" / f"{shard:03d}"
    directory.mkdir(parents=True, exist_ok=True)
    woken = threading.Event()
    store = Store.open(directory, Config(hostname="mta.bench.test"), shard, woken.set, clock_us=_clock_us)
    ids = IdSource(shard, store.last_id, _clock_us)
    under_way = 0
    failed: list[StoreError] = []

    def done(error: StoreError | None) -> None:
        nonlocal under_way
        under_way -= 1
        if error is not None:
            failed.append(error)

    def settle(most: int) -> None:
        store.flush()
        while under_way > most:
            woken.wait()
            woken.clear()
            store.collect()
        if failed:
            raise failed[0]

    accepts: list[tuple[Message, list[Delivery]]] = []
    lines: list[bytes] = []
    gc.freeze()
    try:
        for delivery, told in waiting(shard, shards, queued, domains, size, spread_s, ids, zone, tenant,
                                       first):
            accepts.append((delivery.message, [delivery]))
            lines += told
            if len(accepts) == BATCH:
                under_way += 1
                store.submit(Transaction(accepts, events=lines), done)
                accepts, lines = [], []
                settle(_AHEAD)
        if accepts:
            under_way += 1
            store.submit(Transaction(accepts, events=lines), done)
        settle(0)
        expected = len(range(shard, queued, shards))
        if store.counts().recipients < expected:
            raise StoreError(f"{store.counts().recipients} of {expected} are in shard {shard}")
    finally:
        store.close()


def _clock_us() -> int:
    return time.time_ns() // 1000


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.fill", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="the spool")
    parser.add_argument("--queued", type=int, required=True, metavar="N", help="messages in all")
    parser.add_argument("--domains", type=int, default=50, metavar="N", help="domains that they wait for (50)")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="shards, one per worker (1)")
    parser.add_argument("--size", type=int, default=5000, metavar="BYTES", help="size of a message (5000)")
    parser.add_argument("--spread", type=int, default=3600, metavar="S", help="when the last one is due (3600)")
    parser.add_argument("--zone", default="dead", help="top-level domain of the recipients (%(default)s)")
    parser.add_argument("--tenant", default="", help="whose mail it is (nobody's)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first recipient (0)")
    parser.add_argument("--shard", type=int, metavar="N", help="fill this one only")
    return parser


def main(words: list[str] | None = None) -> int:
    """Fill."""
    parser = arguments()
    options = parser.parse_args(words)
    if min(options.queued, options.domains, options.shards, options.size) < 1 or options.spread < 0:
        parser.error("all numbers are at least 1, --spread 0")
    try:
        if options.shard is not None:
            fill_shard(options.spool, options.shard, options.shards, options.queued, options.domains, options.size,
                       options.spread, options.zone, options.tenant, options.first)
            return 0
        took_s = fill(options.spool, options.queued, options.domains, options.shards, size=options.size,
                      spread_s=options.spread, zone=options.zone, tenant=options.tenant, first=options.first)
    except (FillError, StoreError) as error:
        print(f"bench.fill: {error}", file=sys.stderr)
        return 1
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"queued": options.queued, "seconds": round(took_s, 2),
                      "cpu_s": round(used.ru_utime + used.ru_stime, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
