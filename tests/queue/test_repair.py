"""Repair of a spool: afterwards it is sound, a store opens it, and every recipient is queued or has one end."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.queue import events
from mta.queue.ids import format_id, parse_id
from mta.queue.journal import PAGE
from mta.queue.repair import Repair, repair_spool
from mta.queue.shard import boot_id
from mta.queue.store import Transaction
from mta.queue.transaction import Move, encode_moves
from mta.queue.verify.spool import Options
from tests.queue.damage import (
    INDEX_DAMAGES,
    a_message,
    accept,
    deliver,
    event_file,
    flip,
    records,
    segment,
    used,
)
from tests.queue.faults import Deadly, Killed, Unsynced
from tests.queue.helpers import START_US, Bench

COMPLETE = Options(complete=True)
NOW_US = START_US + 60_000_000
Account = tuple[int, str]  # message id, address


@pytest.fixture
def bench(spool: Path) -> Bench:
    """A store with a past, in the index and beyond it."""
    return used(spool / "shards" / "000")


def waiting(bench: Bench) -> Counter[Account]:
    """Every recipient in the queue."""
    return Counter((delivery.message.id, one.address) for delivery in bench.queue() for one in delivery.recipients)


def told(bench: Bench, *kinds: str) -> Counter[Account]:
    """The recipients that events of these kinds tell of, also in event files that were set aside."""
    lines = bench.events().splitlines()
    for path in (bench.directory / "quarantine").glob("*.jsonl"):
        if path.name != "manifest.jsonl":
            lines += path.read_bytes().splitlines()
    found: Counter[Account] = Counter()
    for line in set(lines):
        try:
            event: dict[str, Any] = events.parse(line)
        except ValueError:
            continue
        if event["event"] in kinds:
            for address in event["recipients"]:
                found[(parse_id(event["message"]), address)] += 1
    return found


def repaired(spool: Path, options: Options = COMPLETE) -> Repair:
    """Repair; nothing is left to be repaired."""
    repair = repair_spool(spool, options, files=Unsynced(), time_us=NOW_US)
    assert repair.after.problems == [], repair.actions
    return repair


def opened(spool: Path) -> Bench:
    """A real store on it; all of its contents can be read."""
    bench = Bench(spool / "shards" / "000", now_us=NOW_US)
    for delivery in bench.queue():
        assert bench.store.body(delivery.message) in (b"x" * 50_000, b"x" * 1000, b"x" * 500_000)
    return bench


def check(bench: Bench, before: Counter[Account], quarantined: Counter[Account] | None = None) -> None:
    """What was queued is queued but for `quarantined`; nothing else is; each of those has one end."""
    gone = quarantined or Counter()
    assert waiting(bench) == before - gone
    assert told(bench, "quarantined") == gone
    ends = told(bench, "delivered", "bounced", "expired", "deleted", "quarantined")
    assert not {account for account, count in ends.items() if count > 1 or account in waiting(bench)}
    assert set(manifest(bench)) == {path.name for path in (bench.directory / "quarantine").iterdir()
                                    if path.suffix != ".eml"} - {"manifest.jsonl"}


def manifest(bench: Bench) -> list[str]:
    """The names of what was set aside, as listed."""
    path = bench.directory / "quarantine" / "manifest.jsonl"
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []


def accounts_of(bench: Bench, message_id: int) -> Counter[Account]:
    """The recipients of one message in the queue."""
    return Counter({account: count for account, count in waiting(bench).items() if account[0] == message_id})


def everything(directory: Path) -> dict[Path, bytes]:
    """All files."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- nothing to do ----------------------------------------------------------------------------------------------------


def test_a_sound_spool_is_not_touched(spool: Path, bench: Bench) -> None:
    """Not a byte."""
    bench.store.abandon()
    before = everything(spool)
    assert repaired(spool).actions == []
    assert everything(spool) == before


def test_a_dry_run_changes_nothing(spool: Path, bench: Bench) -> None:
    """And tells what would be done, as the real run does then."""
    message = a_message(bench)
    assert message.body is not None
    bench.store.abandon()
    flip(segment(bench, message.body.segment), message.body.offset + 7)
    flip(event_file(bench), 5, 3)
    before = everything(spool)
    dry = repair_spool(spool, dry=True, time_us=NOW_US)
    assert everything(spool) == before
    assert dry.actions == repaired(spool, Options()).actions


# -- contents and journal ---------------------------------------------------------------------------------------------


def test_a_damaged_content_leaves_the_queue(spool: Path, bench: Bench) -> None:
    """With envelope and remains set aside, and one event for each recipient."""
    message = a_message(bench)
    assert message.body is not None
    before, gone = waiting(bench), accounts_of(bench, message.id)
    bench.close()
    flip(segment(bench, message.body.segment), message.body.offset + 7)
    repaired(spool)
    name = format_id(message.id)
    facts = json.loads((bench.directory / "quarantine" / f"{name}.json").read_text())
    assert Counter((message.id, address) for address in facts["recipients"]) == gone
    assert (facts["sender"], facts["content_is"], facts["content"]) == ("sender@example.org", "damaged", f"{name}.eml")
    assert len((bench.directory / "quarantine" / f"{name}.eml").read_bytes()) == 50_000
    check(opened(spool), before, gone)


def test_a_missing_segment_takes_its_contents_along(spool: Path, bench: Bench) -> None:
    """What was only there cannot be sent; all else goes on."""
    message = a_message(bench)
    assert message.body is not None
    before = waiting(bench)
    gone = Counter({(delivery.message.id, one.address): 1 for delivery in bench.queue()
                    for one in delivery.recipients
                    if delivery.message.body is not None and delivery.message.body.segment == message.body.segment})
    bench.close()
    segment(bench, message.body.segment).unlink()
    repaired(spool)
    assert before != gone
    check(opened(spool), before, gone)


def test_a_damaged_frame_that_the_index_has_read_costs_nothing(spool: Path, bench: Bench) -> None:
    """Its content is where the index says; it is copied out of the damaged segment."""
    before = waiting(bench)
    bench.close()
    flip(segment(bench), PAGE + 12)
    repaired(spool)
    check(opened(spool), before)


def test_a_segment_with_a_damaged_header_is_emptied(spool: Path, bench: Bench) -> None:
    """Its contents are good, and are copied."""
    before = waiting(bench)
    bench.close()
    flip(segment(bench), 20)
    repaired(spool)
    check(opened(spool), before)


def beyond(spool: Path) -> tuple[Bench, Any, Any, Any]:
    """A store that was killed with a removal, then an acceptance, beyond its checkpoint."""
    bench = used(spool / "shards" / "000")
    [done] = accept(bench, "done.test")
    bench.checkpoint()
    start = bench.store._position
    deliver(bench, done)
    [late] = accept(bench, "late.test")
    bench.store.abandon()
    return bench, start, done, late


def flip_beyond(bench: Bench, number: int) -> None:
    """Damage the frame `number` beyond the checkpoint."""
    state = bench.store._index.state
    flip(segment(bench, state.segment), state.offset + number * PAGE + 12)


def test_a_damaged_removal_that_the_event_files_tell_of_stays_done(spool: Path) -> None:
    """Event files have a line only after it was durable: the delivery is not repeated."""
    bench, _, done, late = beyond(spool)
    flip_beyond(bench, 0)
    repaired(spool)
    bench = opened(spool)
    assert not accounts_of(bench, done.message.id)
    assert accounts_of(bench, late.message.id)
    assert told(bench, "delivered")[(done.message.id, "u0@done.test")] == 1


def test_a_damaged_removal_that_nothing_tells_of_is_tried_again(spool: Path) -> None:
    """As a possible duplicate."""
    bench, _, done, _ = beyond(spool)
    flip_beyond(bench, 0)
    event_file(bench).write_bytes(event_file(bench).read_bytes()[:bench.store._index.state.event_length])
    repaired(spool)
    bench = opened(spool)
    assert accounts_of(bench, done.message.id) == {(done.message.id, "u0@done.test"): 1}
    assert all(delivery.maybe_duplicate for delivery in bench.queue())


def test_a_damaged_acceptance_is_told(spool: Path, bench: Bench) -> None:
    """What was accepted in it is lost; its account is closed, and the bytes are kept."""
    bench.checkpoint()
    [lost] = accept(bench, "lost.test")
    accept(bench, "late.test")
    state = bench.store._index.state
    position = state.position
    bench.store.abandon()
    flip_beyond(bench, 0)
    repaired(spool)
    kept = bench.directory / "quarantine" / f"{position.segment:08d}-{position.offset}.bin"
    assert b"x" * 1000 in kept.read_bytes()
    bench = opened(spool)
    assert told(bench, "quarantined") == {(lost.message.id, "u0@lost.test"): 1}
    facts = json.loads((bench.directory / "quarantine" / f"{format_id(lost.message.id)}-lost.json").read_text())
    assert (facts["recipients"], facts["sender"]) == (["u0@lost.test"], "sender@example.org")


def test_a_gap_in_the_journal_is_passed_over(spool: Path) -> None:
    """The next start would refuse it; what was in the segment and is told of nowhere else is gone."""
    bench = used(spool / "shards" / "000").crash()
    position = bench.store._index.state.position
    for _ in range(3):
        accept(bench, "a.test", size=500_000)
    assert bench.store._position.segment > position.segment + 1
    bench.store.abandon()
    segment(bench, position.segment + 1).unlink()
    repaired(spool)
    bench = opened(spool)
    assert told(bench, "quarantined").total() == 1
    assert sum(delivery.message.size == 500_000 for delivery in bench.queue()) == 2


def test_a_frame_of_nonsense_is_left_out(spool: Path, bench: Bench) -> None:
    """It would stop the next start."""
    before = waiting(bench)
    bench.store.abandon()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mta.queue.transaction.MARK", 99)
        other = Bench(bench.directory)
        other.commit(Transaction(marks=[(b"x", b"y")]))
        other.store.abandon()
    repaired(spool)
    check(opened(spool), before)


def test_a_segment_beyond_the_checkpoint_with_a_damaged_header_is_read(spool: Path) -> None:
    """By the salt of its frames: the mail in it is queued."""
    bench = used(spool / "shards" / "000").crash()
    for _ in range(3):
        accept(bench, "a.test", size=500_000)
    last = bench.store._position.segment
    for number in (last - 1, last):
        flip(segment(bench, number), 20)
    bench.store.abandon()
    repaired(spool)
    bench = opened(spool)
    assert sum(delivery.message.size == 500_000 for delivery in bench.queue()) == 3
    assert not told(bench, "quarantined")


def test_a_content_without_a_record_is_set_aside_whole(spool: Path) -> None:
    """It was copied forward, the segment with its acceptance is gone, then the index: the events have its envelope."""
    bench = Bench(spool / "shards" / "000")
    [delivery] = accept(bench, "moved.test")
    [other] = accept(bench, "a.test", size=500_000)
    bench.checkpoint()
    message = bench.answer(bench.store.find_message, delivery.message.id)[0]
    content = bench.store.body(message)
    accept(bench, "b.test", size=500_000)
    bench.answer(lambda done: bench.store._commits.add(encode_moves([Move(message.id, message.body, content)], done)))
    bench.close()
    segment(bench).unlink()
    (bench.directory / "queue.mdb" / "data.mdb").unlink()
    repaired(spool)
    kept = bench.directory / "quarantine" / f"{format_id(message.id)}-lost"
    facts = json.loads(kept.with_suffix(".json").read_text())
    assert (facts["content_is"], facts["recipients"]) == ("whole", ["u0@moved.test"])
    assert kept.with_suffix(".eml").read_bytes() == content
    assert told(opened(spool), "quarantined") == {(message.id, "u0@moved.test"): 1, (other.message.id, "u0@a.test"): 1}


# -- the index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_an_index_that_does_not_agree_with_itself_is_made_anew(spool: Path, bench: Bench,
                                                               damage: Callable[..., str]) -> None:
    """Every mail is queued again as it was."""
    before = waiting(bench)
    bench.close()
    with records(bench.directory) as (txn, databases):
        damage(txn, databases)
    repaired(spool)
    check(opened(spool), before)


def test_an_index_that_is_lost_is_made_from_the_journal(spool: Path, bench: Bench) -> None:
    """And from the ends that event files tell of."""
    before = waiting(bench)
    bench.store.abandon()
    (bench.directory / "queue.mdb" / "data.mdb").unlink()
    repaired(spool)
    check(opened(spool), before)


def test_every_page_of_an_index_may_be_lost(spool: Path, bench: Bench) -> None:
    """Each one after the other, and half of the file."""
    before = waiting(bench)
    bench.close()
    whole = (bench.directory / "queue.mdb" / "data.mdb").read_bytes()
    for page in (*range(len(whole) // PAGE), -1):
        copy = spool / f"copy{page}"
        shutil.copytree(spool / "shards", copy / "shards")
        (copy / "version").write_text("1\n")
        index = copy / "shards" / "000" / "queue.mdb" / "data.mdb"
        index.write_bytes(whole[:len(whole) // 2] if page < 0 else
                          whole[:page * PAGE] + bytes(PAGE) + whole[(page + 1) * PAGE:])
        if repaired(copy).actions:
            copied = opened(copy)
            check(copied, before)
            copied.close()


def test_removals_in_segments_that_are_gone_are_known_from_events(spool: Path) -> None:
    """A lost index and a journal that has the acceptance, but not the removal: nothing is sent twice."""
    bench = Bench(spool / "shards" / "000")
    sent = accept(bench, "a.test", "b.test", size=1000)
    for _ in range(2):
        accept(bench, "keeps.test", size=500_000)
    accept(bench, "c.test", size=500_000)
    deliver(bench, sent[0])
    gone = bench.store._position.segment
    for _ in range(3):
        accept(bench, "d.test", size=500_000)
    before = waiting(bench)
    bench.close()
    (bench.directory / "queue.mdb" / "data.mdb").unlink()
    # The segment of the removal held no more mail and was used again; here it is mail that is lost with it.
    segment(bench, gone).unlink()
    repaired(spool)
    bench = opened(spool)
    assert accounts_of(bench, sent[0].message.id) == {(sent[0].message.id, "u0@b.test"): 1}
    check(bench, before, before - waiting(bench))


# -- events -----------------------------------------------------------------------------------------------------------


def test_an_event_file_with_garbled_lines_is_set_aside(spool: Path, bench: Bench) -> None:
    """The queue is as it was, and nobody is told of ends that are not known."""
    before = waiting(bench)
    bench.close()
    flip(event_file(bench), 5, 3)
    repaired(spool, Options())
    check(opened(spool), before)


def test_an_event_file_that_was_cut_off_or_taken_away(spool: Path, bench: Bench) -> None:
    """The same."""
    before = waiting(bench)
    bench.close()
    event_file(bench).write_bytes(event_file(bench).read_bytes()[:-10])
    repaired(spool, Options())
    bench = opened(spool)
    check(bench, before)
    accept(bench, "more.test")
    before = waiting(bench)
    bench.close()
    event_file(bench).unlink()
    repaired(spool, Options())
    check(opened(spool), before)


def test_a_message_without_received_gets_it(spool: Path, bench: Bench) -> None:
    """With the recipients that have ended and those that are queued."""
    [quiet] = bench.accept("quiet.test", content=b"x" * 1000)
    deliver(bench, bench.accept("done.test")[0])
    before = waiting(bench)
    bench.close()
    repaired(spool)
    bench = opened(spool)
    check(bench, before)
    assert told(bench, "received")[(quiet.message.id, "u0@quiet.test")] == 1


def test_an_event_that_the_journal_does_not_have_stays(spool: Path, bench: Bench) -> None:
    """The end of the journal was lost: what the event file tells of is closed."""
    bench.store.abandon()
    message_id = bench.ids.next()
    line = json.loads(event_file(bench).read_bytes().splitlines()[0])
    line.update(event="received", message=format_id(message_id), recipients=["gone@x.test"], id="new")
    with event_file(bench).open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
    repaired(spool)
    assert told(opened(spool), "quarantined") == {(message_id, "gone@x.test"): 1}


def test_a_recipient_without_an_end_is_queued_again(spool: Path, bench: Bench) -> None:
    """If the journal has the message, and no removal of it; else its account is closed."""
    accept(bench, "again.test", "there.test")
    [removed] = accept(bench, "removed.test")
    bench.commit(Transaction(removes=[removed]))
    before = waiting(bench)
    bench.close()
    with records(bench.directory) as (txn, databases):
        for name in ("messages", "schedule", "queues", "names", "due", "segments"):
            txn.drop(databases[name], delete=False)
    repaired(spool)
    bench = opened(spool)
    check(bench, before + Counter({(removed.message.id, "u0@removed.test"): 1}),
          Counter({(removed.message.id, "u0@removed.test"): 1}))


def test_copies_of_events_that_a_loss_of_power_garbled_are_written_again(spool: Path, bench: Bench) -> None:
    """From the journal, when something else is repaired."""
    before = waiting(bench)
    [late] = accept(bench, "late.test")
    deliver(bench, late)
    current, length = event_file(bench), bench.store._index.state.event_length
    bench.store.abandon()
    flip(current, length, 50)
    flip(segment(bench), PAGE + 12)
    repaired(spool)
    bench = opened(spool)
    check(bench, before)
    assert told(bench, "received")[(late.message.id, "u0@late.test")] == 1
    assert told(bench, "delivered")[(late.message.id, "u0@late.test")] == 1


def test_a_lost_message_is_found_among_other_events_of_its_frame(spool: Path, bench: Bench) -> None:
    """Some of which are about no message."""
    deliveries = bench.make("gone.test", content=b"x" * 1000)
    message = deliveries[0].message
    bench.commit(Transaction([(message, deliveries)], events=[
        events.alarm("source a", text="gone", time_us=NOW_US), events.received(message, deliveries)]))
    bench.commit(Transaction(removes=deliveries))
    bench.store.abandon()
    repaired(spool)
    assert told(opened(spool), "quarantined") == {(message.id, "u0@gone.test"): 1}


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_garbled_marks_are_set_aside(spool: Path, bench: Bench) -> None:
    """What they were about is not known: all that is due counts as possibly delivered."""
    before = waiting(bench)
    bench = bench.crash(boot_id=boot_id())
    bench.store.abandon()
    flip(bench.directory / "inflight", 64 * 16, 16)
    repaired(spool)
    bench = opened(spool)
    check(bench, before)
    assert all(delivery.maybe_duplicate for delivery in bench.queue())


def test_versions_are_written_anew(spool: Path, bench: Bench) -> None:
    """Of a spool that is otherwise sound nothing else is changed."""
    before = waiting(bench)
    bench.close()
    (bench.directory / "version").unlink()
    (spool / "version").write_text("x")
    assert len(repaired(spool).actions) == 2
    assert waiting(opened(spool)) == before


# -- kills ------------------------------------------------------------------------------------------------------------


def lose_much(spool: Path) -> tuple[Counter[Account], Counter[Account]]:
    """A spool with a damaged content, a damaged frame with a good content, a damaged removal beyond the checkpoint, a
    lost account, and garbled marks. What was queued, and what of that cannot be had.
    """
    bench, _, _, _ = beyond(spool)
    bench = Bench(bench.directory)
    bad, last = a_message(bench), accept(bench, "last.test")[0]
    bench.store.mark_inflight(last)
    [gone] = accept(bench, "gone.test")
    bench.commit(Transaction(removes=[gone]))
    before, lost = waiting(bench), accounts_of(bench, bad.id)
    deliver(bench, last)
    accept(bench, "later.test")
    bench.store.abandon()
    assert bad.body is not None
    flip(segment(bench, bad.body.segment), bad.body.offset + 7)
    flip(segment(bench), PAGE + 12)
    flip_beyond(bench, 0)
    flip(bench.directory / "inflight", 64 * 16, 16)
    before -= Counter({(last.message.id, "u0@last.test"): 1})
    return before, lost + Counter({(gone.message.id, "u0@gone.test"): 1})


def lose_index(spool: Path) -> tuple[Counter[Account], Counter[Account]]:
    """The index is gone, and a content is damaged."""
    bench = used(spool / "shards" / "000")
    bad = a_message(bench)
    before, lost = waiting(bench), accounts_of(bench, bad.id)
    bench.store.abandon()
    assert bad.body is not None
    flip(segment(bench, bad.body.segment), bad.body.offset + 7)
    (bench.directory / "queue.mdb" / "data.mdb").write_bytes(b"x" * 10_000)
    return before, lost


def lose_events(spool: Path) -> tuple[Counter[Account], Counter[Account]]:
    """An event file has a garbled line, and the index a damaged page."""
    bench = used(spool / "shards" / "000")
    before = waiting(bench)
    bench.close()
    flip(event_file(bench), 5, 3)
    flip(bench.directory / "queue.mdb" / "data.mdb", 3 * PAGE, PAGE)
    return before, Counter()


@pytest.mark.parametrize(("damage", "power"), [
    (lose_much, False), (lose_index, False), (lose_events, False), (lose_much, True),
])
def test_a_repair_that_is_killed_can_be_run_again(
    tmp_path: Path, damage: Callable[[Path], tuple[Counter[Account], Counter[Account]]], power: bool
) -> None:
    """At every operation on a file: the second run makes of it what the first one would have made."""
    origin = tmp_path / "origin"
    (origin / "shards").mkdir(parents=True)
    (origin / "version").write_text("1\n")
    before, lost = damage(origin)
    rng = random.Random(1)
    for at in range(1, 1000):
        spool = tmp_path / str(at)
        shutil.copytree(origin, spool)
        files = Deadly(at)
        try:
            repair_spool(spool, files=files, time_us=NOW_US)
        except Killed:
            if power:
                files.power_off(lambda: rng.random() < 0.5)
            files.bury()
        repaired(spool, Options())
        bench = opened(spool)
        queued = waiting(bench)
        assert before - lost <= queued, at
        assert not queued & lost, at
        ends = told(bench, "delivered", "quarantined")
        assert {account for account in lost if told(bench, "quarantined")[account] != 1} == set(), at
        assert {account for account, count in ends.items() if count > 1 or account in queued} == set(), at
        bench.close()
        shutil.rmtree(spool)
        if not files.dead:
            break
    assert at > 20
