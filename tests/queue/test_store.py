"""The store as its users see it: accept, settle, load, list."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mta.queue.records import Attempt, Delivery, Recipient
from mta.queue.shard import VERSION
from mta.queue.store import Counts, Store, StoreLocked, StoreUnusable, StoreVersion, Transaction
from tests.queue.faults import Unsynced
from tests.queue.helpers import START_US, Bench, config, outcome, removal


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An open store in a new directory."""
    return Bench(tmp_path / "000")


def test_what_is_accepted_survives_a_kill(bench: Bench) -> None:
    """A message that was confirmed is there after a kill, with all that was said of it (I1)."""
    [sent] = bench.accept("a.test", content=b"X: 1\r\n\r\n\xff\x00body", message_id="<1@x>", flags=3, ret="HDRS",
                          envid="e+3D", origin="smtp 127.0.0.1:1 me", tenant="t", header_size=5)
    after = bench.crash()
    [found] = after.queue()
    assert found.message.content is None
    assert after.store.body(found.message) == b"X: 1\r\n\r\n\xff\x00body"
    sent.message.content = None
    sent.message.body = found.message.body
    assert found == sent
    after.close()


def test_the_place_of_the_content_is_known_when_it_is_confirmed(bench: Bench) -> None:
    """`done` may drop the content from memory: it can be read back at once."""
    [sent] = bench.accept("a.test", content=b"hello")
    sent.message.content = None
    assert bench.store.body(sent.message) == b"hello"
    bench.close()


def test_details_of_recipients_survive(bench: Bench) -> None:
    """DSN parameters, addresses that are no UTF-8, history and flags come back as they were."""
    [sent] = bench.make("a.test")
    sent.recipients = [Recipient("caf\udce9@a.test", 6, "rfc822;x+2Ba@a.test"), Recipient("b@a.test")]
    bench.commit(Transaction([(sent.message, [sent])]))
    sent.history = [Attempt(START_US, "mx [192.0.2.1]:25", "451 4.7.1 No\nt now")]
    sent.attempts, sent.warned, sent.maybe_duplicate, sent.due_us = 1, True, True, START_US + 5
    bench.commit(Transaction(updates=[sent]))
    [found] = bench.crash().queue()
    sent.message.content = None
    assert found == sent


def test_mail_that_comes_and_goes_never_touches_the_index(bench: Bench) -> None:
    """Between two checkpoints a message leaves no trace in the index (the cost of a message that goes straight out)."""
    for _ in range(3):
        bench.commit(removal(bench.accept("a.test", "b.test")))
    assert bench.counts() == Counts(0, 0, 0)
    assert bench.store._effects.size == 0
    assert bench.queued() == []
    bench.close()


def test_a_message_leaves_with_its_last_delivery(bench: Bench) -> None:
    """Several deliveries end one by one, before or after a checkpoint, and the message with the last of them."""
    first, _, third = bench.accept("a.test", "b.test", "c.test")
    bench.commit(removal([first]))
    bench.checkpoint()
    assert bench.counts() == Counts(1, 2, 2)
    [loaded] = bench.load("b.test")  # another Message object than the one accepted
    bench.commit(removal([loaded]))
    bench.checkpoint()
    assert bench.counts() == Counts(1, 1, 1)
    assert bench.answer(bench.store.find_message, first.message.id)[1][0].domain == "c.test"
    bench.commit(removal([third]))
    bench.checkpoint()
    assert bench.counts() == Counts(0, 0, 0)
    assert bench.answer(bench.store.find_message, first.message.id) == (None, [])
    bench.close()


def test_removing_twice_counts_once(bench: Bench) -> None:
    """Two ends of one delivery, say by an operator and by the receiver, do not take another delivery with them."""
    first, second = bench.accept("a.test", "b.test")
    bench.checkpoint()
    bench.commit(removal([first]))
    bench.checkpoint()
    bench.commit(removal([first]))
    bench.commit(removal([first, first]))
    assert bench.queued() == [second.key]
    assert bench.counts() == Counts(1, 1, 1)
    bench.commit(removal([second, second]))
    bench.commit(removal([second]))
    assert bench.counts().deliveries == 0
    bench.checkpoint()
    assert bench.counts() == Counts(0, 0, 0)
    bench.close()


@pytest.mark.parametrize("stored", [False, True])
def test_an_update_does_not_bring_back_what_was_removed(bench: Bench, stored: bool) -> None:
    """A late outcome of a delivery that has ended changes nothing."""
    [sent] = bench.accept("a.test")
    if stored:
        bench.checkpoint()
    bench.commit(removal([sent]))
    bench.commit(Transaction(updates=[sent]))
    assert bench.queued() == []
    assert bench.counts() == Counts(0, 0, 0)
    bench.close()


def test_loading_is_by_due_time_and_bounded(bench: Bench) -> None:
    """Due deliveries come soonest first, up to the limit, with the time of the first one left out."""
    for n in (5, 3, 9, 1, 7):
        bench.accept("a.test", due_us=START_US + n)
    bench.checkpoint()

    def load(before: int, limit: int) -> tuple[list[int], int | None]:
        found, next_us = bench.answer(bench.store.load_due, "a.test", START_US + before, limit, ())
        return [d.due_us - START_US for d in found], None if next_us is None else next_us - START_US

    assert load(7, 2) == ([1, 3], 5)
    assert load(7, 10) == ([1, 3, 5, 7], 9)
    assert load(0, 10) == ([], 1)
    assert load(9, 5) == ([1, 3, 5, 7, 9], None)
    assert bench.answer(bench.store.load_due, "b.test", 1 << 62, 5, ()) == ([], None)
    bench.close()


def test_what_is_excluded_does_not_use_up_the_limit(bench: Bench) -> None:
    """Deliveries that are in memory stand for nothing, neither in the result nor in the time of the next one."""
    sent = [bench.accept("a.test", due_us=START_US + n)[0] for n in range(6)]
    bench.checkpoint()
    exclude = {sent[0].key, sent[1].key, sent[3].key}
    found, next_us = bench.answer(bench.store.load_due, "a.test", START_US + 4, 2, exclude)
    assert [d.key for d in found] == [sent[2].key, sent[4].key]
    assert next_us == START_US + 5
    assert bench.answer(bench.store.load_due, "a.test", 1 << 62, 2, {d.key for d in sent}) == ([], None)
    bench.close()


def test_loading_never_resurrects_what_was_submitted(bench: Bench) -> None:
    """A delivery that was settled after the read was asked for is not in its result, durable or not."""
    one, two, three = (bench.accept("a.test")[0] for _ in range(3))
    bench.checkpoint()
    results: list[list[int]] = []
    bench.store.load_due("a.test", 1 << 62, 10, (), lambda found, _: results.append([d.message.id for d in found]))
    bench.store.submit(Transaction(updates=[outcome(one, due_us=START_US + 60)]))
    bench.store.submit(removal([two]))
    bench.until(lambda: results)
    assert results == [[three.message.id]]
    bench.close()


def test_what_is_not_in_the_index_is_not_loaded(bench: Bench) -> None:
    """Fresh and changed deliveries are the hub's until a checkpoint, which says when they are due in the index."""
    [old] = bench.accept("a.test", due_us=START_US + 1)
    bench.checkpoint()
    assert bench.checkpoints == [[("a.test", START_US + 1)]]
    bench.accept("a.test", due_us=START_US)
    bench.commit(Transaction(updates=[outcome(old, due_us=START_US + 9)]))
    assert bench.answer(bench.store.load_due, "a.test", 1 << 62, 10, ()) == ([], None)
    bench.checkpoint()
    assert bench.checkpoints[1:] == [[("a.test", START_US)]]
    assert len(bench.load("a.test")) == 2
    bench.commit(removal(bench.load("a.test")))
    bench.checkpoint()
    assert bench.checkpoints[2:] == [[("a.test", None)]]
    bench.close()


def test_queues_come_in_the_order_of_their_due_time(bench: Bench) -> None:
    """Paging through the index of due queues shows each queue once, at its first due time, also at equal times."""
    for n in range(10):
        bench.accept(f"d{n}.test", due_us=START_US + n // 4)
        bench.accept(f"d{n}.test", due_us=START_US + 100)
    bench.checkpoint()
    pages: list[tuple[int, str]] = []
    after: bytes | None = b""
    while after is not None:
        page, after = bench.answer(bench.store.due_queues, after, 3)
        assert len(page) <= 3
        pages += page
    assert sorted(pages) == [(START_US + n // 4, f"d{n}.test") for n in range(10)]
    assert [due for due, _ in pages] == sorted(due for due, _ in pages)
    bench.close()


def test_lists_are_as_of_all_that_was_submitted(bench: Bench) -> None:
    """A delivery that has ended is not in a list that is asked for afterwards, though its end is not durable yet: it
    waits for others, or for a slow disk."""
    first, second = bench.accept("a.example", "b.example")
    bench.answer(bench.store.list_queues, "", 10)
    bench.store.patient = True
    bench.store.submit(Transaction(removes=[first]))
    bench.store.flush()  # on its way
    bench.store.submit(Transaction(removes=[second]))  # gathers

    _, totals = bench.answer(bench.store.list_queues, "", 10)

    assert totals.recipients == 0


def test_tenants_are_counted_in_one_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries by tenant, with and without a campaign, as of now, however many pieces it takes; no others."""
    monkeypatch.setattr("mta.queue.index._SLICE", 2)
    for queue in ("acme@a.example", "news:acme@b.example", "news:acme@a.example/pool^bulk", "other@a.example",
                  "a.example", "acme.example", "xacme@a.example"):
        bench.accept(queue, queue)
    assert bench.answer(bench.store.count_of_tenants, {"acme", "none"}) == {"acme": 6, "none": 0}


def test_listing_shows_the_largest_queues(bench: Bench) -> None:
    """`list_queues` has counts, next due time and last reply, as of now, filtered by a shell pattern."""
    for n in range(1, 5):
        for _ in range(n):
            bench.accept(f"d{n}.test", recipients=2, due_us=START_US + n)
    [late] = bench.accept("other.example", due_us=START_US + 50)
    failed = Attempt(START_US, "mx.example [192.0.2.1]:25", "451 4.3.0 Later")
    bench.commit(Transaction(updates=[outcome(late, history=[failed], due_us=START_US + 60)]))
    queues, totals = bench.answer(bench.store.list_queues, "", 2)
    assert totals == (5, 11, 21)
    assert [(q.name, q.deliveries, q.recipients, q.next_due_us) for q in queues] == [
        ("d4.test", 4, 8, START_US + 4), ("d3.test", 3, 6, START_US + 3)]
    [queue], totals = bench.answer(bench.store.list_queues, "*.EXAMPLE", 10)
    assert totals.queues == 1
    assert (queue.name, queue.last) == ("other.example", failed)
    assert [d.due_us for d in bench.answer(bench.store.list_deliveries, "other.example", 5)] == [START_US + 60]
    bench.close()


def test_a_long_listing_is_made_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many queues there are, a listing never keeps the index from others for long, and is complete."""
    monkeypatch.setattr("mta.queue.index._SLICE", 3)
    names = [f"d{n}.test" for n in range(10)]
    bench.accept(*names)
    assert sorted(queue.name for queue in bench.answer(bench.store.list_queues, "", 100)[0]) == sorted(names)
    bench.close()


def test_old_mail_is_found_by_its_age(bench: Bench) -> None:
    """`arrived_before` finds what was accepted before a time, whatever its due time, the oldest first."""
    old = bench.accept("a.test", "b.test", due_us=START_US + 10**12)
    bench.clock.now_us += 1000
    new = bench.accept("a.test")
    bench.checkpoint()

    def find(before: int, limit: int) -> list[tuple[int, int]]:
        return [d.key for d in bench.answer(bench.store.arrived_before, START_US + before, limit)]

    assert find(0, 9) == []
    assert find(1000, 9) == [d.key for d in old]
    assert find(1000, 1) == [old[0].key]
    assert find(2000, 9) == [d.key for d in old + new]
    bench.commit(removal([old[0]]))
    assert find(1000, 1) == [old[1].key]
    bench.close()


def test_old_mail_that_is_on_its_way_out_takes_no_place(bench: Bench) -> None:
    """Who gives up old mail asks for more as soon as it has ended what it got, which is not durable then: it is given
    what comes after that. Else it would find nothing new, and take that for all there is until the next minute."""
    old = [bench.accept("a.test")[0] for _ in range(6)]
    bench.clock.now_us += 1000
    bench.checkpoint()
    bench.store.patient = True
    ended: list[tuple[int, int]] = []

    def give_up(found: list[Delivery]) -> None:
        if found:
            ended.extend(one.key for one in found)
            bench.store.submit(removal(found))
            bench.store.arrived_before(START_US + 1000, 2, give_up)
        else:
            ended.append((0, 0))

    bench.store.arrived_before(START_US + 1000, 2, give_up)
    bench.until(lambda: (0, 0) in ended)
    assert bench.store.pending, "it was written before"
    assert ended == [*(one.key for one in old), (0, 0)]
    bench.close()


def test_old_mail_can_be_read_in_pieces(bench: Bench) -> None:
    """`arrived_between` goes on behind the key that it gave, and says when nothing was left to look at."""
    old = bench.accept("a.test", "b.test") + bench.accept("a.test")
    bench.clock.now_us += 1000
    bench.accept("a.test")

    def find(after: bytes, limit: int) -> tuple[list[tuple[int, int]], bytes | None]:
        found, last = bench.answer(bench.store.arrived_between, after, START_US + 1000, limit)
        return [d.key for d in found], last

    keys, last = find(b"", 1)
    assert keys == [old[0].key]
    assert last is not None
    bench.commit(removal([old[1]]))
    keys, last = find(last, 5)
    assert keys == [old[2].key]
    assert last is not None
    assert find(last, 5) == ([], None)
    bench.close()


def test_what_is_due_after_a_time_is_found_in_all_queues(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, behind whatever else is in a queue, and not what was settled since."""
    monkeypatch.setattr("mta.queue.index._SLICE", 4)
    late = set()
    for number in range(20):
        for due_us in range(START_US, START_US + 1 + number % 3):
            one, = bench.accept(f"d{number}.org", due_us=due_us)
            if due_us > START_US:
                late.add(one.key)
    bench.commit(removal([one]))
    late.remove(one.key)

    found, start = [], b""
    while start is not None:
        some, start = bench.answer(bench.store.due_after, START_US, start, 3)
        assert len(some) <= 3
        found += [one.key for one in some]

    assert sorted(found) == sorted(late)


def test_counts_are_those_of_the_queue(bench: Bench) -> None:
    """Messages, deliveries and recipients, over accepts, partial outcomes and removals."""
    one, two = bench.accept("a.test", "b.test", recipients=3)
    assert bench.counts() == Counts(1, 2, 6)
    bench.checkpoint()
    bench.accept("c.test")
    assert bench.counts() == Counts(2, 3, 7)
    bench.commit(Transaction(updates=[outcome(one, recipients=one.recipients[:1])], removes=[two]))
    bench.checkpoint()
    assert bench.counts() == Counts(2, 2, 2)
    assert bench.crash().counts() == Counts(2, 2, 2)


def test_marks_are_remembered(bench: Bench) -> None:
    """A mark is there when its transaction is durable, until its removal is: over checkpoints and kills."""
    bench.commit(Transaction(marks=[(b"file 1", b"id 1"), (b"file 2", b"")]))
    has = bench.store.has_mark
    assert (bench.answer(has, b"file 1"), bench.answer(has, b"file 2"), bench.answer(has, b"x")) == (b"id 1", b"", None)
    bench = bench.crash()
    assert bench.answer(bench.store.has_mark, b"file 1") == b"id 1"
    assert bench.answer(bench.store.list_marks, b"", 10) == [(b"file 1", b"id 1"), (b"file 2", b"")]
    assert bench.answer(bench.store.list_marks, b"file 1", 10) == [(b"file 2", b"")]
    bench.commit(Transaction(unmarks=[b"file 1"]))
    assert bench.answer(bench.store.has_mark, b"file 1") is None
    bench = bench.crash()
    assert bench.answer(bench.store.list_marks, b"", 10) == [(b"file 2", b"")]
    bench.close()


def test_what_cannot_be_stored_is_refused_at_once(bench: Bench) -> None:
    """A transaction that the index could not hold never gets into the journal, where it would stay."""
    [sent] = bench.make("a.test")
    for wrong in ({"index": 70_000}, {"index": -1}, {"due_us": -1}, {"due_us": 1 << 64}):
        with pytest.raises(ValueError, match="out of range"):
            bench.store.submit(Transaction([(sent.message, [outcome(sent, **wrong)])]))
    with pytest.raises(ValueError, match="at least one"):
        bench.store.submit(Transaction([(sent.message, [])]))
    with pytest.raises(ValueError, match="same index"):
        bench.store.submit(Transaction([(sent.message, [sent, sent])]))
    with pytest.raises(ValueError, match="mark"):
        bench.store.submit(Transaction(marks=[(b"", b"")]))
    assert bench.queued() == []
    bench.close()


def test_a_queue_name_of_any_length_is_a_queue(bench: Bench) -> None:
    """Names above the length of the index's keys are different queues, and come back whole."""
    names = ["x" * 600, "x" * 600 + "y", ""]
    for name in names:
        bench.accept(name)
    assert sorted(d.queue for d in bench.queue()) == sorted(names)
    bench.close()


def test_the_state_of_a_transaction_is_that_of_its_submission(bench: Bench) -> None:
    """What the hub changes after `submit` is not in what is stored."""
    [sent] = bench.make("a.test")
    answers: list[object] = []
    bench.store.submit(Transaction([(sent.message, [sent])]), answers.append)
    sent.recipients.clear()
    sent.due_us = 7
    bench.store.flush()
    bench.until(lambda: answers)
    [found] = bench.crash().queue()
    assert ([r.address for r in found.recipients], found.due_us) == (["u0@a.test"], START_US)


def test_a_callback_that_fails_keeps_nobody_waiting(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in what follows a commit is logged, and the others of the group are told."""
    told: list[object] = []

    def fail(_: object) -> None:
        raise RuntimeError("boom")

    for done in (fail, told.append):
        deliveries = bench.make("a.test")
        bench.store.submit(Transaction([(deliveries[0].message, deliveries)]), done)
    bench.store.flush()
    bench.until(lambda: told)
    assert "boom" in caplog.text
    bench.close()


def test_a_group_is_one_sync(bench: Bench) -> None:
    """All that gathers while the disk is busy becomes one frame."""
    told: list[object] = []
    for _ in range(50):
        deliveries = bench.make("a.test")
        bench.store.submit(Transaction([(deliveries[0].message, deliveries)]), told.append)
    bench.store.flush()
    bench.until(lambda: len(told) == 50)
    assert bench.store.statistics.groups == 1
    bench.close()


def test_a_group_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers is written in pieces when it is much, in order."""
    monkeypatch.setattr("mta.queue.commits.GROUP_BYTES", 10_000)
    told: list[int] = []
    for n in range(20):
        deliveries = bench.make("a.test", content=bytes(4000))
        bench.store.submit(Transaction([(deliveries[0].message, deliveries)]), lambda _, n=n: told.append(n))
    bench.store.flush()
    bench.until(lambda: len(told) == 20)
    assert told == list(range(20))
    assert bench.store.statistics.groups == 10
    bench.close()


def test_checkpoints_come_by_themselves(tmp_path: Path) -> None:
    """After the configured time a change is in the index although nothing else happens."""
    bench = Bench(tmp_path / "000", config(checkpoint=0.02))
    bench.accept("a.test")
    bench.until(lambda: bench.checkpoints)
    assert [d.domain for d in bench.load("a.test")] == ["a.test"]
    bench.close()


def test_many_changes_make_an_early_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of changes that wait for a checkpoint is bounded."""
    monkeypatch.setattr("mta.queue.checkpointing.CHECKPOINT_ENTRIES", 10)
    bench.accept(*(f"d{n}.test" for n in range(12)))
    bench.until(lambda: bench.checkpoints)
    bench.close()


def test_a_long_journal_makes_a_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of journal that a recovery has to read is bounded, also when all mail goes straight out."""
    monkeypatch.setattr("mta.queue.checkpointing.CHECKPOINT_BYTES", 100_000)
    for _ in range(5):
        bench.commit(removal(bench.accept("a.test", content=bytes(30_000))))
    bench.until(lambda: bench.store.statistics.checkpoints)
    bench.close()


def test_intake_stops_when_the_index_does_not_keep_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the index is bounded: then the journal waits, and `room` says why."""
    monkeypatch.setattr("mta.queue.checkpointing.ENTRIES_MAX", 3)
    monkeypatch.setattr(bench.store, "_begin_checkpoint", lambda: None)
    bench.accept("a.test", "b.test", "c.test")
    assert "index does not keep up" in str(bench.store.room())
    deliveries = bench.make("d.test")
    told: list[object] = []
    bench.store.submit(Transaction([(deliveries[0].message, deliveries)]), told.append)
    bench.store.flush()
    assert bench.store._commits._writing is None
    monkeypatch.undo()
    bench.checkpoint()
    bench.until(lambda: told)
    assert bench.store.room() is None
    bench.close()


def test_room_is_the_free_space_above_the_reserve(tmp_path: Path) -> None:
    """Intake stops when the disk has less than the reserve left, and the reason is told."""
    bench = Bench(tmp_path / "000", config(reserve=1 << 60))
    assert "MB are reserved" in str(bench.store.room())
    bench.close()


def test_room_is_looked_at_more_often_the_less_is_left(tmp_path: Path) -> None:
    """The reserve is not used up within the second for which a look at the disk is believed."""

    class Small(Unsynced):
        """A disk of which all that was allocated is gone."""

        def free_space(self, path: Path) -> tuple[int, int | None]:
            """What is left of 20 MB."""
            segments = (bench.directory / "journal").glob("*.seg")
            return 20_000_000 - sum(one.stat().st_size for one in segments), None

    bench = Bench(tmp_path / "000", config(segment_size=1_000_000, reserve=10_000_000), files=Small())
    taken = 0
    while bench.store.room() is None:
        taken += bench.accept("a.test", content=bytes(400_000))[0].message.size
    assert 5_000_000 < taken <= 10_000_000
    bench.close()



def test_two_owners_are_refused(bench: Bench) -> None:
    """A shard has one owner at a time."""
    with pytest.raises(StoreLocked, match="in use by process"):
        Bench(bench.directory)
    bench.close()
    Bench(bench.directory).close()


@pytest.mark.parametrize(("version", "text"), [(VERSION + 1, "newer version"), (VERSION - 1, "older version")])
def test_another_version_is_refused(bench: Bench, version: int, text: str) -> None:
    """A shard that another program wrote is not touched."""
    bench.close()
    (bench.directory / "version").write_text(f"{version}\n")
    with pytest.raises(StoreVersion, match=text):
        Bench(bench.directory)


def test_a_queue_without_version_is_refused(bench: Bench) -> None:
    """Files of unknown origin are not taken for an empty queue."""
    bench.close()
    (bench.directory / "version").unlink()
    with pytest.raises(StoreUnusable, match="version is missing"):
        Bench(bench.directory)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The operator gets one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match=r"file.*cannot be used"):
        Bench(tmp_path / "file" / "000")


def test_content_is_read_from_other_threads(bench: Bench) -> None:
    """`body` may be called from a thread pool."""
    deliveries = [bench.accept("a.test", content=b"%d" % n)[0] for n in range(50)]
    for delivery in deliveries:
        delivery.message.content = None
    bodies: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda d=d: bodies.update({d.message.id: bench.store.body(d.message)}))
               for d in deliveries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bodies[d.message.id] for d in deliveries] == [b"%d" % n for n in range(50)]
    bench.close()


def test_the_largest_id_is_known_after_a_restart(bench: Bench) -> None:
    """Ids stay unique: also those of messages that are gone already."""
    [sent] = bench.accept("a.test")
    bench.commit(removal([sent]))
    bench = bench.crash()
    assert bench.store.last_id == sent.message.id
    bench.close()
    assert Bench(bench.directory).store.last_id == sent.message.id


def test_close_writes_what_is_pending(bench: Bench) -> None:
    """A clean end loses nothing that was submitted."""
    told: list[object] = []
    deliveries = bench.make("a.test")
    bench.store.submit(Transaction([(deliveries[0].message, deliveries)]), told.append)
    bench.close()
    assert told == [None]
    assert Bench(bench.directory).queued() == [deliveries[0].key]


def test_a_subclass_is_opened_as_itself(tmp_path: Path) -> None:
    """`open` makes an instance of the class it is called on."""

    class Special(Store):
        """A store with something more."""

    store = Special.open(tmp_path / "000", config(), 0, lambda: None, clock_us=lambda: START_US)
    assert type(store) is Special
    store.close()
