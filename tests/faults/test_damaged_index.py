"""A real MTA on an index with damage in it: it says so once, the rest goes on, and the repair loses nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.queue.ids import format_id
from mta.queue.index import DELIVERY_KEY, MESSAGE_KEY
from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message
from tests.queue.damage import overwrite_pages, records

QUEUED = 150
HELD = "held.test"


def test_a_damaged_record_of_a_queue(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """New mail for that queue and for others is taken and delivered, checkpoints succeed, and the record is sound
    again; the log has one alarm, with the file and what to do, and `mta status` shows it."""
    mta = filled(make_mta, sandbox)
    with records(shard(mta)) as (txn, db):
        txn.put(txn.get(HELD.encode(), db=db["names"]), b"\xc1" * 40, db=db["queues"])
    mta.start()
    for number in range(1000, 1020):
        mta.send("s@client.test", [f"u@d{number % 4}.test", f"u@{HELD}"], message(number, "x"))
    mta.wait_until(lambda: mta.queued() == QUEUED + 20, "delivery of what is not held")
    mta.wait_until(lambda: mta.status()["workers"][0]["damage"], "the damage in `mta status`")
    check_alarm(mta)
    assert f" {QUEUED + 20} " in mta.command("queue", "list")
    sandbox.set(HELD, {})
    mta.command("retry", "--domain", HELD, "--now", "--yes")
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert mta.stop() == 0
    assert verify_spool(mta.directory / "spool", complete=True) == []
    assert len(list(delivered(mta))) == QUEUED + 40


def test_what_cannot_be_read_is_not_said_to_be_missing(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Neither a message nor a queue whose record is damaged: what is told is the damage, and no events of old."""
    mta = filled(make_mta, sandbox)
    with records(shard(mta)) as (txn, db):
        key = next(key for key, _ in txn.cursor(db["messages"]) if len(key) == MESSAGE_KEY.size)
        txn.put(key, b"\xc1" * 80, db=db["messages"])
        txn.put(txn.get(HELD.encode(), db=db["names"]), b"\xc1" * 40, db=db["queues"])
    mta.start()
    name = format_id(MESSAGE_KEY.unpack(key)[0])
    for command in (["queue", "show", HELD], ["message", name], ["message", "--body", name], ["explain", name]):
        said = refused(mta, *command)
        assert f"{shard(mta) / 'queue.mdb' / 'data.mdb'} is damaged" in said, command
        assert "no queue" not in said, command
    assert mta.stop() == 0


@pytest.mark.parametrize("filling", [b"\xff", b""], ids=["ones", "noise"])
def test_a_damaged_page(make_mta: Callable[..., Mta], sandbox: Sandbox, filling: bytes) -> None:
    """A page of records that can neither be read nor written: what does not touch it is delivered, there is one alarm,
    and questions are answered. After the repair every message that was accepted is delivered once."""
    mta = filled(make_mta, sandbox)
    overwrite(mta, filling)
    mta.start()
    taken = 0
    for number in range(1000, 1010):
        try:
            mta.send("s@client.test", [f"u@d{number % 4}.test"], message(number, "x"))
            taken += 1
        except OSError:
            break  # 452: refused, and said so
    sandbox.set(HELD, {})
    mta.command("retry", "--domain", HELD, "--now", "--yes", check=False)
    mta.wait_until(lambda: mta.status()["workers"][0]["damage"], "the damage in `mta status`")
    check_alarm(mta)
    assert "damaged" in mta.command("queue", "show", HELD, check=False) + mta.command("status")
    check_alarm(mta)
    mta.stop()
    assert verify_spool(mta.directory / "spool", complete=True) != []
    print(mta.command("spool", "verify", "--repair"))
    assert verify_spool(mta.directory / "spool", complete=True) == []
    mta.start()
    mta.command("retry", "--domain", HELD, "--now", "--yes")
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert mta.stop() == 0
    assert len(set(delivered(mta))) == QUEUED + taken


def refused(mta: Mta, *arguments: str) -> str:
    """What a command says that fails."""
    done = subprocess.run([sys.executable, "-m", "mta", *arguments, "-c", str(mta.directory / "mta.yaml")],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def filled(make_mta: Callable[..., Mta], sandbox: Sandbox) -> Mta:
    """An MTA that was stopped with mail for a domain that defers all of it."""
    sandbox.set(HELD, {"greylist": "1h"})
    mta = make_mta(workers=1, retry={"first": "1h", "factor": 1.5, "cap": "2h"}).start()
    for number in range(QUEUED):
        mta.send("s@client.test", [f"u{number}@{HELD}"], message(number, "x"))
    mta.wait_until(lambda: len([1 for one in mta.events() if one["event"] == "deferred"]) >= QUEUED, "first attempts")
    assert mta.stop() == 0
    return mta


def shard(mta: Mta) -> Path:
    """The directory of its only shard."""
    return mta.directory / "spool" / "shards" / "000"


def overwrite(mta: Mta, filling: bytes) -> None:
    """Damage a page of the schedule, and one of the records, of deliveries in the middle of the queue."""
    with records(shard(mta)) as (txn, db):
        places = list(txn.cursor(db["schedule"]).iternext(values=False))
    middle = places[len(places) // 2]
    overwrite_pages(shard(mta), middle, filling)
    overwrite_pages(shard(mta), middle[-DELIVERY_KEY.size:], filling)


def check_alarm(mta: Mta) -> None:
    """There is one, which says where and what to do."""
    mta.wait_until(lambda: any("spool verify --repair" in line for line in mta.log), "an alarm")
    [alarm] = [line for line in mta.log if "spool verify --repair" in line]
    assert f"{shard(mta) / 'queue.mdb' / 'data.mdb'} is damaged" in alarm


def delivered(mta: Mta) -> list[tuple[str, str]]:
    """What was, by message and recipient."""
    return [(one["message"], address) for one in mta.events() if one["event"] == "delivered"
            for address in one["recipients"]]
