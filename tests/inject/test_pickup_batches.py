"""Batches in the spool directory: accepted up to the first error, or with XACK OFF without what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from mta.inject.intake import Accepted
from mta.inject.pickup import BATCH
from tests.inject.pickup_helpers import TOLERANT, MemoryStore, drop, finish, left, make, message, transactions

pytestmark = pytest.mark.usefixtures("disks_are_fast")


def test_a_batch_is_accepted_up_to_the_first_error(tmp_path: Path) -> None:
    """What stands before stays accepted; the rest goes to failed/, and the reason names both places."""
    content = transactions("1@x.example", "2@x.example") + transactions("bad") + transactions("4@x.example")
    drop(tmp_path, "many.bsmtp", content)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example", "2@x.example"]
    assert store.kept_marks == {}
    rest, report = sorted((tmp_path / "failed").iterdir())
    assert rest.name.startswith("many.")
    assert rest.suffix == ".bsmtp"
    assert report.name == rest.name + ".error"
    assert rest.read_text() == transactions("bad") + transactions("4@x.example")
    assert "line 14: " in report.read_text()
    assert "before line 13 was accepted, this file has the rest (line 14 is its line 2)" in report.read_text()
    assert left(tmp_path) == [f"failed/{rest.name}", f"failed/{report.name}"]


def test_a_batch_that_is_wrong_from_the_start_goes_aside_whole(tmp_path: Path) -> None:
    """Under its own name; so does one without a transaction."""
    drop(tmp_path, "bad.bsmtp", transactions("bad"))
    drop(tmp_path, "empty.bsmtp", "HELO x\nQUIT\n")
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert left(tmp_path) == [f"failed/{name}.bsmtp{end}" for name in ("bad", "empty") for end in ("", ".error")]
    assert "there is no transaction in it" in (tmp_path / "failed/empty.bsmtp.error").read_text()
    assert store.accepted == []


def test_a_refused_transaction_ends_a_batch_too(tmp_path: Path) -> None:
    """What intake refuses counts like an error of the format, at its line."""
    looped = transactions("2@x.example").replace("Subject", "Received: x\n" * 6 + "Subject")
    drop(tmp_path, "many.bsmtp", transactions("1@x.example") + looped + transactions("3@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store, hops=5))
    assert store.recipients() == ["1@x.example"]
    (report,) = (tmp_path / "failed").glob("*.error")
    assert "line 7: 554 5.4.6" in report.read_text()


def test_a_batch_goes_on_behind_what_was_accepted(tmp_path: Path) -> None:
    """When something fails between reading and accepting, what was read is read again, not skipped."""
    recipients = [f"{number:03}@x.example" for number in range(2 * BATCH + 5)]
    drop(tmp_path, "many.bsmtp", transactions(*recipients))
    store = MemoryStore()
    one = make(tmp_path, store)
    one.adopt()
    one.step()
    store.errors = [OSError(5, "Input/output error")]
    with pytest.raises(OSError, match="Input/output"):
        one.step()
    finish(one)
    assert store.recipients() == recipients


def test_a_huge_batch_does_not_keep_others_waiting(tmp_path: Path) -> None:
    """Portions of batches and other files take turns."""
    drop(tmp_path, "huge.bsmtp", transactions(*[f"{n}@huge.example" for n in range(5 * BATCH)]))
    store = MemoryStore()
    one = make(tmp_path, store)
    one.adopt()
    one.step()
    assert len(store.accepted) == BATCH
    drop(tmp_path, "small", message("1@small.example"))
    one.step()  # ends the pass over the directory that was begun before
    one.step()
    assert "1@small.example" in store.recipients()
    assert len(store.accepted) == 3 * BATCH + 1
    while one.step():
        pass
    assert len(store.accepted) == 5 * BATCH + 1


@pytest.mark.parametrize("name", ["{}.eml", "{}.bsmtp"])
def test_messages_with_many_recipients_are_taken_a_few_at_a_time(tmp_path: Path, name: str) -> None:
    """A thousand deliveries are what the hub makes at once, for whatever number of messages; none is left out."""
    for number in range(5):
        to = [f"{number}-{one}@x.example" for one in range(400)]
        if name.endswith(".eml"):
            text = "X-Sender: a@a.example\n" + "".join(f"X-Receiver: {one}\n" for one in to) + "Subject: x\n\nbody\n"
        else:
            text = "MAIL FROM:<a@a.example>\n" + "".join(f"RCPT TO:<{one}>\n" for one in to) + "DATA\nSubject: x\n\n.\n"
        drop(tmp_path, name.format(number), text)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert len(store.recipients()) == len(set(store.recipients())) == 2000
    assert store.commits == 2
    assert left(tmp_path) == []


def test_small_batches_share_a_commit(tmp_path: Path) -> None:
    """Many short batches cost what many files cost; each has a mark of its own, and a bad one spoils only itself."""
    for number in range(20):
        drop(tmp_path, f"{number}.bsmtp", transactions(f"{number:02}@x.example", f"{number:02}@y.example"))
    drop(tmp_path, "bad.bsmtp", transactions("98@x.example", "bad", "99@x.example"))
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert len(store.recipients()) == 41
    assert store.commits == 1
    assert store.kept_marks == {}
    assert [name.partition(".")[0] for name in left(tmp_path)] == ["failed/bad"] * 2


class Forgetful(MemoryStore):
    """A store that counts what it accepts and keeps none of it."""

    count = 0

    def _commit(self, accepted: list[Accepted], marks: dict[bytes, bytes]) -> None:
        self.count += len(accepted)
        self.kept_marks |= marks


@pytest.mark.parametrize("kind", ["files", "batches", "batch"])
def test_memory_does_not_grow_with_the_number_of_messages(tmp_path: Path, kind: str) -> None:
    """Four times as many files, or transactions in a file, need what a commit of them needs: no name is kept."""
    peaks = []
    for number in (1, 4):
        count = number * 5 * BATCH
        place = tmp_path / str(number)
        text = ("x" * 70 + "\n") * 40
        if kind == "batch":
            batch = transactions(*(f"{n}@x.example" for n in range(count)))
            drop(place, "one.bsmtp", batch.replace("\n\n", "\n\n" + text))
        for n in range(count if kind != "batch" else 0):
            if kind == "files":
                drop(place, f"{n}.eml", message(f"{n}@x.example") + text)
            else:
                drop(place, f"{n}.bsmtp", transactions(f"{n}@x.example"))
        store = Forgetful()
        one = make(place, store)
        tracemalloc.start()
        finish(one)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert store.count == count
    assert peaks[1] < 1.2 * peaks[0]


def test_refused_recipients_are_put_aside_with_their_messages(tmp_path: Path) -> None:
    """XACK OFF: the others are accepted; what is put aside can be mended and renamed in again as it is."""
    drop(tmp_path, "many.bsmtp", TOLERANT)
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example", "2@x.example"]
    names = [name for name in left(tmp_path) if not name.endswith(".error")]
    assert len(names) == 1
    error = (tmp_path / f"{names[0]}.error").read_text()
    assert "line 3: 'RCPT TO:<worse>': 501 5.1.3" in error
    assert "line 10: 'RCPT TO:<bad>': 501 5.1.3" in error
    mended = (tmp_path / names[0]).read_text().replace("<bad>", "<3@x.example>").replace("<worse>", "<4@x.example>")
    drop(tmp_path, "mended.bsmtp", mended)
    finish(make(tmp_path, store, shard=1))
    assert store.recipients() == [f"{number}@x.example" for number in range(1, 5)]
    assert store.accepted[2].message.content[-14:] == store.accepted[0].message.content[-14:]


def test_the_rest_of_a_tolerant_batch_is_tolerant(tmp_path: Path) -> None:
    """It says XACK OFF again, and its report counts that line."""
    drop(tmp_path, "many.bsmtp", "XACK OFF\n" + transactions("1@x.example") + "MAIL FROM:<>\nNONSENSE\n")
    finish(make(tmp_path, MemoryStore()))
    (rest,) = (name for name in left(tmp_path) if name.endswith(".bsmtp"))
    assert (tmp_path / rest).read_text() == "XACK OFF\nMAIL FROM:<>\nNONSENSE\n"
    assert "line 9 is its line 3" in (tmp_path / f"{rest}.error").read_text()


def test_long_names_are_shortened_at_the_front(tmp_path: Path) -> None:
    """A name of 255 octets can be claimed and put aside; its suffix still says what it is."""
    drop(tmp_path, "x" * 249 + ".bsmtp", transactions("1@x.example") + transactions("bad"))
    drop(tmp_path, "y" * 255, "bad")
    store = MemoryStore()
    finish(make(tmp_path, store))
    assert store.recipients() == ["1@x.example"]
    assert len(left(tmp_path)) == 4
