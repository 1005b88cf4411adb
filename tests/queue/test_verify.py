"""The checker of a spool: what is sound passes, every kind of damage is found."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.queue import events
from mta.queue.errors import StoreLocked, StoreVersion
from mta.queue.eventlog import event_files
from mta.queue.ids import format_id
from mta.queue.journal import PAGE, segment_numbers
from mta.queue.shard import boot_id
from mta.queue.store import Transaction
from mta.queue.verify import verify_shard
from tests.queue.damage import (
    INDEX_DAMAGES,
    REMOTE,
    TAKEN,
    a_message,
    accept,
    deliver,
    event_file,
    flip,
    records,
    segment,
    used,
)
from tests.queue.helpers import Bench, outcome


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A store with a past, in the index and beyond it."""
    return used(tmp_path / "000")


def test_a_store_is_sound_at_any_time(bench: Bench) -> None:
    """After a kill, after the recovery from it, and after a clean end."""
    bench.store.abandon()
    assert verify_shard(bench.directory, complete=True) == []
    bench = Bench(bench.directory)
    bench.store.abandon()
    assert verify_shard(bench.directory, complete=True) == []
    Bench(bench.directory).close()
    assert verify_shard(bench.directory, complete=True) == []


def kinds(directory: Path, **options: bool) -> list[str]:
    """The kinds of problems in a shard, each once, in the order in which they are found."""
    return list(dict.fromkeys(problem.kind for problem in verify_shard(directory, complete=True, **options)))


# -- what is sound ----------------------------------------------------------------------------------------------------


def test_a_shard_in_use_is_not_looked_at(bench: Bench) -> None:
    """What is read while it changes would make no sense."""
    with pytest.raises(StoreLocked, match="is in use by process"):
        verify_shard(bench.directory)
    bench.close()


def test_a_shard_that_was_never_used_is_sound(tmp_path: Path) -> None:
    """Also one whose first owner was killed at once."""
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "shard.lock").write_text("")
    assert verify_shard(tmp_path / "000") == []
    Bench(tmp_path / "001").store.abandon()
    assert verify_shard(tmp_path / "001", complete=True) == []
    Bench(tmp_path / "001").close()
    assert verify_shard(tmp_path / "001", complete=True) == []


def test_a_torn_tail_is_sound(bench: Bench) -> None:
    """What a crash tore was confirmed to nobody, and the next start drops it."""
    bench.store.submit(Transaction([(d.message, [d]) for d in bench.make("x.test", content=bytes(9000))]))
    bench.store.flush()
    bench.store._disk_thread.call(lambda: None)
    end = bench.store._position
    bench.store.abandon()
    flip(segment(bench, end.segment), end.offset + 2 * PAGE)
    assert kinds(bench.directory) == []


def test_old_segments_that_nothing_needs_do_not_count(tmp_path: Path) -> None:
    """The store is about to use them again: what is in them is of no interest."""
    bench = Bench(tmp_path / "000")
    for _ in range(6):
        deliver(bench, accept(bench, "a.test", size=600_000)[0])
    accept(bench, "b.test")
    bench.checkpoint()
    oldest = segment_numbers(bench.directory / "journal")[0]
    assert oldest < bench.store._position.segment
    bench.store.abandon()
    flip(segment(bench, oldest), PAGE, 100_000)
    assert kinds(bench.directory) == []


def test_copies_of_events_that_a_power_failure_garbled_are_sound(bench: Bench) -> None:
    """Behind the checkpoint the journal is what counts; the next start writes them again."""
    current = bench.directory / "events" / event_files(bench.directory / "events")[-1]
    length = bench.store._index.state.event_length
    bench.store.abandon()
    assert current.stat().st_size > length
    flip(current, length, 50)
    assert kinds(bench.directory) == []


# -- what is damaged --------------------------------------------------------------------------------------------------


def test_a_damaged_content_is_found(bench: Bench) -> None:
    """And the message is named; a quick look does not see it."""
    message = a_message(bench)
    assert message.body is not None
    bench.close()
    flip(segment(bench, message.body.segment), message.body.offset + 7)
    [problem] = verify_shard(bench.directory, complete=True)
    assert (problem.kind, problem.place) == (
        "content", f"{segment(bench, message.body.segment)}:{message.body.offset}")
    assert format_id(message.id) in problem.text
    assert kinds(bench.directory, quick=True) == []


def test_a_damaged_frame_is_found(bench: Bench) -> None:
    """Before the checkpoint: what is in it is whole. Behind it: what was settled in it is lost."""
    position = bench.store._index.state.position
    bench.store.abandon()
    flip(segment(bench), PAGE + 12)
    assert kinds(bench.directory) == ["frame"]
    flip(segment(bench), PAGE + 12)
    flip(segment(bench, position.segment), position.offset + 12)
    assert "frame" in kinds(bench.directory)


def test_a_frame_of_nonsense_is_found(bench: Bench) -> None:
    """A frame that is whole but says nonsense stops the next start."""
    bench.store.abandon()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mta.queue.transaction.MARK", 99)
        other = Bench(bench.directory)
        other.commit(Transaction(marks=[(b"x", b"y")]))
        other.store.abandon()
    [problem] = verify_shard(bench.directory, complete=True)
    assert problem.kind == "frame"
    assert "unknown operation 99" in problem.text


def test_a_missing_segment_is_found(bench: Bench) -> None:
    """With the contents that were in it."""
    place = a_message(bench).body
    bench.close()
    assert place is not None
    segment(bench, place.segment).unlink()
    assert kinds(bench.directory) == ["segment", "content"]


def test_a_missing_segment_in_the_chain_is_found(bench: Bench) -> None:
    """Behind the checkpoint there must be no gap."""
    bench = bench.crash()
    position = bench.store._index.state.position
    for _ in range(3):
        accept(bench, "a.test", size=500_000)
    end = bench.store._position
    assert end.segment > position.segment + 1
    bench.store.abandon()
    segment(bench, position.segment + 1).unlink()
    problems = verify_shard(bench.directory, complete=True)
    assert [problem.place for problem in problems if problem.kind == "segment"] == [
        str(segment(bench, position.segment + 1))]


def test_a_clean_end_that_is_none_is_found(bench: Bench) -> None:
    """An index that was put back from a copy says that nothing is left in the journal."""
    bench.close()
    index = bench.directory / "queue.mdb" / "data.mdb"
    before = index.read_bytes()
    bench = Bench(bench.directory)
    accept(bench, "late.test")
    bench.close()
    index.write_bytes(before)
    assert "state" in kinds(bench.directory)


def test_a_damaged_page_of_the_index_is_found(bench: Bench) -> None:
    """By reading the file without LMDB, which might end this process."""
    bench.close()
    index = bench.directory / "queue.mdb" / "data.mdb"
    whole = index.read_bytes()
    for page in range(len(whole) // 4096):
        index.write_bytes(whole[:page * 4096] + bytes(4096) + whole[(page + 1) * 4096:])
        assert kinds(bench.directory) in (["index"], [])  # []: a page that is not in use
    index.write_bytes(whole[:len(whole) // 2])
    assert kinds(bench.directory) == ["index"]
    index.unlink()
    assert kinds(bench.directory) == ["index"]


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_key_of_another_size_is_found(bench: Bench, size: int) -> None:
    """In any leaf, also of the free pages, whose keys are numbers: the last key of the page, which is then none. It is
    told, and stops nothing."""
    bench.close()
    index = bench.directory / "queue.mdb" / "data.mdb"
    whole = index.read_bytes()
    found = 0
    for start in range(2 * 4096, len(whole), 4096):  # behind the meta pages
        _, _, flags, lower, _ = struct.unpack_from("<QHHHH", whole, start)
        if flags == 2 and lower > 16:  # a leaf that has nodes
            (node,) = struct.unpack_from("<H", whole, start + lower - 2)
            damaged = bytearray(whole)
            struct.pack_into("<H", damaged, start + node + 6, size)
            index.write_bytes(damaged)
            found += bool(kinds(bench.directory))  # nothing of a page that is not in use
    assert found > 3


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_an_index_that_does_not_agree_with_itself_is_found(bench: Bench, damage: Callable[..., str]) -> None:
    """Whatever record is wrong: it is named."""
    bench.close()
    with records(bench.directory) as (txn, databases):
        text = damage(txn, databases)
    problems = verify_shard(bench.directory, complete=True)
    assert any(text in problem.text for problem in problems), problems


# -- events -----------------------------------------------------------------------------------------------------------


def test_a_lost_recipient_is_found(bench: Bench) -> None:
    """Accepted, not in the queue, and without an end: the worst that there is."""
    [delivery] = accept(bench, "gone.test")
    bench.commit(Transaction(removes=[delivery]))
    bench.close()
    [problem] = verify_shard(bench.directory)
    assert problem.kind == "lost"
    assert f"{format_id(delivery.message.id)} to u0@gone.test was accepted" in problem.text


def test_the_end_of_some_recipients_is_not_that_of_others(bench: Bench) -> None:
    """Each recipient of a delivery is accounted for by itself."""
    [delivery] = accept(bench, "some.test", recipients=3)
    event = events.delivered(delivery, delivery.recipients[:1], TAKEN, REMOTE, attempt=1, time_us=bench.clock(),
                             duration_s=0.1)
    bench.commit(Transaction(updates=[outcome(delivery, recipients=delivery.recipients[2:])], events=[event]))
    bench.store.abandon()
    assert [problem.text.split()[3] for problem in verify_shard(bench.directory)] == ["u1@some.test"]


@pytest.mark.parametrize("repeat", ["maybe", "sure"])
def test_a_second_end_has_to_be_announced(bench: Bench, repeat: str) -> None:
    """It is allowed to a delivery that a crash left open, and to no other."""
    [delivery] = accept(bench, "twice.test")
    deliver(bench, delivery)
    delivery.maybe_duplicate = repeat == "maybe"
    deliver(bench, delivery)
    bench.close()
    assert kinds(bench.directory) == ([] if repeat == "maybe" else ["end"])


def test_an_end_of_what_is_still_queued_is_found(bench: Bench) -> None:
    """It would end again."""
    [delivery] = accept(bench, "still.test")
    event = events.expired(delivery, delivery.recipients, time_us=bench.clock())
    bench.commit(Transaction(events=[event]))
    bench.store.abandon()
    [problem] = verify_shard(bench.directory)
    assert "has ended and is in the queue" in problem.text
    assert "u0@still.test" in problem.text


def test_an_end_without_a_beginning_is_found(bench: Bench) -> None:
    """Unless its beginning may have been in a file that was removed in its time."""
    deliver(bench, bench.accept("unknown.test")[0])
    bench.close()
    assert kinds(bench.directory) == ["event file"]
    assert verify_shard(bench.directory) == []
    first = json.loads(event_file(bench).read_bytes().splitlines()[0])
    assert first["event"] == "received"


def test_a_damaged_event_file_is_found(bench: Bench) -> None:
    """A line that is none, an end that is missing, a file that is missing."""
    bench.close()
    whole = event_file(bench).read_bytes()
    flip(event_file(bench), 5, 3)
    assert kinds(bench.directory)[0] == "event file"
    event_file(bench).write_bytes(whole[:-10])
    assert "event file" in kinds(bench.directory)
    event_file(bench).unlink()
    (bench.directory / "events" / "20200101-000000-000.jsonl").write_bytes(b"")
    assert kinds(bench.directory) == ["event file"]


def test_events_that_the_journal_does_not_have_are_found(bench: Bench) -> None:
    """The end of the journal was lost, and with it mail that was accepted."""
    bench.store.abandon()
    with event_file(bench).open("ab") as file:
        file.write(event_file(bench).read_bytes().splitlines(keepends=True)[0])
    [problem] = verify_shard(bench.directory)
    assert "is not in the journal" in problem.text


def test_the_accounts_do_not_have_to_fit_into_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many partitions give the same answer as one."""
    [delivery] = accept(bench, "gone.test")
    bench.commit(Transaction(removes=[delivery]))
    bench.close()
    monkeypatch.setattr("mta.queue.verify.join.ENTRIES_AT_ONCE", 5)
    monkeypatch.setattr("mta.queue.verify.join._IN_MEMORY", 1000)
    assert kinds(bench.directory) == ["lost"]


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_marks_that_are_none_are_found(bench: Bench) -> None:
    """A mark names a delivery that this shard may have had; only a loss of power leaves others."""
    [delivery] = accept(bench, "flying.test")
    bench.store.mark_inflight(delivery)
    bench = bench.crash(boot_id=boot_id())
    bench.store.abandon()
    assert kinds(bench.directory) == []
    flip(bench.directory / "inflight", 64 * 16, 16)
    assert kinds(bench.directory) == ["inflight"]
    Bench(bench.directory, boot_id="boot 2").store.abandon()
    flip(bench.directory / "inflight", 64 * 16, 16)
    assert kinds(bench.directory) == []
    Bench(bench.directory, boot_id="boot 3").close()
    assert kinds(bench.directory) == []


def test_the_version_is_looked_at(bench: Bench) -> None:
    """A newer one is not judged at all."""
    bench.close()
    (bench.directory / "version").write_text("x\n")
    assert kinds(bench.directory) == ["version"]
    (bench.directory / "version").unlink()
    assert kinds(bench.directory) == ["version"]
    (bench.directory / "version").write_text("9\n")
    with pytest.raises(StoreVersion, match="newer version"):
        verify_shard(bench.directory)


def test_many_problems_of_one_kind_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is bounded, too."""
    monkeypatch.setattr("mta.queue.verify.problems.SHOWN", 3)
    bench.close()
    with records(bench.directory) as (txn, databases):
        txn.drop(databases["schedule"], delete=False)
    problems = [problem for problem in verify_shard(bench.directory, complete=True) if problem.kind == "record"]
    assert len(problems) == 4
    assert "more of the kind `record`" in problems[-1].text
