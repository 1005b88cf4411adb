"""Take the files of a spool directory, each message exactly once.

A file goes through these steps; each is durable before the next begins (I1 holds for files too):

1. It is claimed: renamed to a unique name that nothing else will ever have (`mta.inject.claims`).
2. It is read. Its messages are accepted by the store, and in the same commit a *mark* under the claim's token says
   how far the file was taken: `done`, or the position behind the last transaction of a batch.
3. It is removed.
4. The mark is removed.

What a crash leaves, and what the next owner of the shard does with it (`adopt`), after kill -9 as after power loss:

    crash after              left behind                  next start
    the rename, not synced   the file, old or new name    takes it: nothing was accepted yet
    1 claim                  claim                        reads it
    2 commit                 claim, mark `done`           removes the file, then the mark
    2 part of a batch        claim, mark with position    goes on behind the last accepted transaction
    3 removal                mark                         removes the mark
    a refusal, before its    claim, perhaps a `.error`    refuses it again; an orphan `.error` may stay
      file was moved
    a refusal inside of a    claim, mark with position,   writes the rest again, under the same name
      batch, rest written      rest in failed/

A claim lies in the directory of its shard and its mark in the store of that shard, so whoever owns the shard later
finds both, whatever the number of workers is then. Two things are out of reach: a spool that was thrown away while
claims were left (their marks went with it), and a file system that loses what it has synced.

A batch is taken in portions. A transaction that is refused ends it: those before are accepted and stay so, the rest
goes to `failed/`. Portions of a batch and other files take turns, so that a huge batch does not keep others waiting.

There is no gevent here and no clock: `run` carries a blocking function to a thread, `pause` waits, the store is a
`PickupStore`. Memory is bounded by BATCH names and PORTION_BYTES, or one message if that is larger.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

from mta.config.schema import Config
from mta.inject.batch import BEGIN, BatchReader, Position
from mta.inject.claims import Claim, FileError, SpoolDirectory, shown
from mta.inject.formats import FormatError, Submission, parse_message
from mta.inject.intake import Accepted, Intake, Source
from mta.queue.errors import StoreError
from mta.queue.shortage import SHORTAGE
from mta.smtp.reply import Reply

BATCH: Final = 64
"""Files claimed at once, transactions of a batch accepted at once, and batches under way."""

PORTION_BYTES: Final = 4_000_000
"""Content accepted in one commit, when there is more than one message in it."""

ROOM_S: Final = 1.0
"""How often to ask again whether there is room. A full disk announces nothing when it is full no more."""

_DONE: Final = "done"
_MARKS_AT_ONCE: Final = 1000

T = TypeVar("T")
log = logging.getLogger(__name__)


class PickupStore(Protocol):
    """What the spool directory asks of the store of its shard."""

    def commit(self, accepted: Sequence[Accepted], marks: Sequence[tuple[bytes, bytes]]) -> None:
        """Make all of it durable together, then schedule what was accepted. Raises StoreError: nothing was done."""

    def forget(self, keys: Sequence[bytes]) -> None:
        """Remove marks, some time soon."""

    def mark(self, key: bytes) -> bytes | None:
        """The value of a mark."""

    def marks(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Marks in the order of their keys, after the key `after`."""

    def room(self) -> str | None:
        """None, or why no new mail may be taken."""


class Run(Protocol):
    """Carries out a function that blocks on the disk, and returns what it returns or raises."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> T: ...


class Stopping(Exception):  # noqa: N818 - not an error
    """Raised by `pause` when it is time to stop. Claims stay for the next start."""


@dataclass(slots=True)
class Statistics:
    """What was done since the start."""

    messages: int = 0
    files: int = 0  # taken whole
    failed: int = 0
    waiting: str = ""  # why files are not taken now


@dataclass(slots=True)
class _Batch:
    """A batch that is being taken."""

    claim: Claim
    position: Position = BEGIN  # behind the last transaction that was accepted
    reader: BatchReader | None = None

    def close(self) -> None:
        """Close the file."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


class _Transaction(NamedTuple):
    submission: Submission
    line: int
    end: Position


@dataclass(slots=True)
class _Portion:
    """Some transactions of a batch, and what came behind them."""

    transactions: list[_Transaction] = field(default_factory=list)
    failure: FormatError | FileError | None = None
    ended: bool = False


class Pickup:
    """Takes the files of one directory into one shard."""

    def __init__(
        self,
        directory: SpoolDirectory,
        config: Config,
        intake: Intake,
        store: PickupStore,
        run: Run,
        pause: Callable[[float], None],
        *,
        takes_new: bool = True,
    ) -> None:
        """`takes_new` is off for a shard that is only emptied: then nothing is claimed, only what was is finished."""
        self.directory = directory
        self.statistics = Statistics()
        self._intake = intake
        self._store = store
        self._run = run
        self._pause = pause
        self._takes_new = takes_new
        self._batches: deque[_Batch] = deque()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over the options of a new configuration, for files that are claimed from now on.

        The intake takes them over, too: that of a shard which is only emptied has nobody else to tell it.
        """
        self._intake.configure(config)
        self._limits = config.smtp
        self._hostname = config.hostname
        self._labels = next((one.labels for one in config.pickup if one.directory == self.directory.directory), None)

    def close(self) -> None:
        """Let go of the directory and of what is open in it. Claims stay for the next start."""
        for batch in self._batches:
            batch.close()
        self._batches.clear()
        self.directory.close()

    def adopt(self) -> None:
        """Finish what was begun and not done: by an earlier process, or by this one when the disk failed. Call it
        first. Raises as `step`."""
        busy = {batch.claim.token for batch in self._batches}
        claims = [claim for claim in self._run(self.directory.leftovers) if claim.token not in busy]
        self._forget_orphaned_marks(busy | {claim.token for claim in claims})
        finished: list[Claim] = []
        fresh: list[Claim] = []
        for claim in claims:
            value = self._store.mark(_key(claim))
            position = _position(value) if value is not None else BEGIN
            if position is None:
                finished.append(claim)
            elif claim.is_batch:
                self._batches.append(_Batch(claim, position))
            else:
                fresh.append(claim)
        if finished:
            self._run(self.directory.remove, finished)
            self._store.forget([_key(claim) for claim in finished])
        if claims:
            log.info("%s: %d files had been begun", shown(self.directory.directory), len(claims))
        self._take(fresh)

    def step(self) -> bool:
        """Take some files, and a portion of a batch. Whether there may be more to do.

        Raises Stopping, and OSError when the directory itself is out of order.
        """
        self._wait_for_room()
        found = False
        if self._takes_new and len(self._batches) < BATCH:
            claims = self._run(self.directory.claim, BATCH)
            found = bool(claims)
            self._batches.extend(_Batch(claim) for claim in claims if claim.is_batch)
            self._take([claim for claim in claims if not claim.is_batch])
        if self._batches:
            batch = self._batches[0]
            try:
                more = self._take_portion(batch)
            except BaseException:
                batch.close()  # it has read ahead of what was accepted
                raise
            self._batches.popleft()
            if more:
                self._batches.append(batch)
            found = True
        return found

    # -- message files ----------------------------------------------------------------------------------------------

    def _take(self, claims: list[Claim]) -> None:
        while claims:
            count, read = self._run(self._read, claims)
            claims = claims[count:]
            failures = [(claim, found) for claim, found in read if isinstance(found, str)]
            messages = [(claim, found) for claim, found in read if isinstance(found, Submission)]
            taken = self._accept_files(messages, failures)
            self._run(self._settle, taken, failures)
            self.statistics.files += len(taken)
            if taken:
                self._store.forget([_key(claim) for claim in taken])

    def _read(self, claims: list[Claim]) -> tuple[int, list[tuple[Claim, Submission | str]]]:
        """In a thread: how many files were read, and the message in each or what is wrong with it."""
        found: list[tuple[Claim, Submission | str]] = []
        size = 0
        for count, claim in enumerate(claims):
            if size > PORTION_BYTES:
                return count, found
            try:
                submission = parse_message(self.directory.read(claim, self._limits.message_size), self._limits)
            except FileNotFoundError:
                continue
            except (FormatError, FileError) as error:
                found.append((claim, str(error)))
            except MemoryError:
                raise _no_memory(claim) from None
            except OSError as error:
                if error.errno in SHORTAGE:  # the file is as good as it was
                    raise
                found.append((claim, f"it cannot be read: {error.strerror}"))
            except Exception:
                log.exception("bug: %s could not be read", shown(claim.name))
                found.append((claim, "internal error; the log has more"))
            else:
                size += len(submission.content)
                found.append((claim, submission))
        return len(claims), found

    def _accept_files(
        self, messages: list[tuple[Claim, Submission]], failures: list[tuple[Claim, str]]
    ) -> list[Claim]:
        """Commit the messages; those that are refused become failures. Returns the claims that were accepted."""
        value = f"{_DONE} 0 {shown(self.directory.directory)}".encode()

        def prepare() -> tuple[list[Accepted], list[Claim], list[tuple[Claim, str]]]:
            accepted: list[Accepted] = []
            claims: list[Claim] = []
            refused: list[tuple[Claim, str]] = []
            for claim, submission in messages:
                prepared = self._prepare(claim, submission)
                if isinstance(prepared, Reply):
                    refused.append((claim, str(prepared)))
                else:
                    accepted.append(prepared)
                    claims.append(claim)
            return accepted, claims, refused

        while True:
            accepted, claims, refused = prepare()
            if not accepted or self._committed(accepted, [(_key(claim), value) for claim in claims]):
                failures.extend(refused)
                return claims

    def _settle(self, taken: list[Claim], failures: list[tuple[Claim, str]]) -> None:
        """In a thread: files that were accepted go, those that were refused are put aside."""
        if taken:
            self.directory.remove(taken)
        for claim, reason in failures:
            self._failed(claim, self.directory.fail(claim, reason), reason)

    # -- batches ----------------------------------------------------------------------------------------------------

    def _take_portion(self, batch: _Batch) -> bool:
        """Accept the next transactions of a batch. Whether there are more."""
        try:
            portion = self._run(self._read_portion, batch)
        except FileNotFoundError:
            return False
        while True:
            refusal: FormatError | FileError | None = None
            accepted: list[Accepted] = []
            position = batch.position
            for transaction in portion.transactions:
                prepared = self._prepare(batch.claim, transaction.submission)
                if isinstance(prepared, Reply):
                    refusal = FormatError(transaction.line, str(prepared))
                    break
                accepted.append(prepared)
                position = transaction.end
            value = f"{position.offset} {position.line} {shown(self.directory.directory)}".encode()
            if not accepted or self._committed(accepted, [(_key(batch.claim), value)]):
                batch.position = position
                break
        failure = refusal or portion.failure
        if failure is None and portion.ended and batch.position == BEGIN:
            failure = FileError("there is no transaction in it")
        if failure is None and not portion.ended:
            return True
        self._run(self._settle_batch, batch, failure)
        if batch.position != BEGIN:
            self._store.forget([_key(batch.claim)])
        return False

    def _read_portion(self, batch: _Batch) -> _Portion:
        """In a thread: the next transactions of a batch."""
        portion = _Portion()
        try:
            if batch.reader is None:
                file = self.directory.open_file(batch.claim)
                batch.reader = BatchReader(file, self._limits, self._hostname, batch.position)
            size = 0
            while len(portion.transactions) < BATCH and size < PORTION_BYTES:
                submission = batch.reader.next()
                if submission is None:
                    portion.ended = True
                    break
                size += len(submission.content)
                portion.transactions.append(_Transaction(submission, batch.reader.begin, batch.reader.position))
        except (FormatError, FileError) as error:
            portion.failure = error
        except FileNotFoundError:
            raise
        except MemoryError:
            raise _no_memory(batch.claim) from None
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            portion.failure = FileError(f"it cannot be read: {error.strerror}")
        except Exception:
            log.exception("bug: %s could not be read", shown(batch.claim.name))
            portion.failure = FileError("internal error; the log has more")
        return portion

    def _settle_batch(self, batch: _Batch, failure: FormatError | FileError | None) -> None:
        """In a thread: a batch is done; what could not be taken of it is put aside."""
        batch.close()
        claim = batch.claim
        if failure is None:
            self.statistics.files += 1
        elif batch.position == BEGIN:
            reason = str(failure)
            self._failed(claim, self.directory.fail(claim, reason), reason)
            return
        else:
            line = batch.position.line
            reason = f"{failure}; what stood before line {line} was accepted, this file has the rest"
            if isinstance(failure, FormatError):
                reason = f"{reason} (line {failure.line} is its line {failure.line - line + 1})"
            self._failed(claim, self.directory.fail_rest(claim, batch.position, reason), reason)
        self.directory.remove([claim])

    # -- both -------------------------------------------------------------------------------------------------------

    def _prepare(self, claim: Claim, submission: Submission) -> Accepted | Reply:
        source = Source.pickup(shown(f"{self.directory.directory}/{claim.name}"), self._labels)
        return self._intake.prepare(submission.envelope, submission.content, source)

    def _committed(self, accepted: list[Accepted], marks: list[tuple[bytes, bytes]]) -> bool:
        """Commit; if the store cannot, wait until it may, and say False: prepare and try again."""
        try:
            self._store.commit(accepted, marks)
        except StoreError as error:
            log.error("%s: %s; trying again", shown(self.directory.directory), error)
            self._pause(ROOM_S)
            self._wait_for_room()
            return False
        self.statistics.messages += len(accepted)
        return True

    def _failed(self, claim: Claim, target: str, reason: str) -> None:
        self.statistics.failed += 1
        log.warning("%s: %s; now %s", shown(claim.name), reason, shown(target))

    def _wait_for_room(self) -> None:
        while True:
            reason = self._store.room() or ""
            # The reason may have figures in it that change all the time: what is logged is that there is one.
            if reason and not self.statistics.waiting:
                log.warning("%s: files wait: %s", shown(self.directory.directory), reason)
            self.statistics.waiting = reason
            if not reason:
                return
            self._pause(ROOM_S)

    def _forget_orphaned_marks(self, tokens: set[str]) -> None:
        """Remove the marks of this directory whose file is gone."""
        directory = shown(self.directory.directory)
        after = _PREFIX
        while True:
            found = self._store.marks(after, _MARKS_AT_ONCE)
            ours = [(key, value) for key, value in found if key.startswith(_PREFIX)]
            orphans = [
                key
                for key, value in ours
                if _directory(value) == directory and key[len(_PREFIX) :].decode() not in tokens
            ]
            if orphans:
                self._store.forget(orphans)
            if len(ours) < _MARKS_AT_ONCE:
                return
            after = ours[-1][0]


def _no_memory(claim: Claim) -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), claim.name)


_PREFIX: Final = b"pickup:"


def _key(claim: Claim) -> bytes:
    return _PREFIX + claim.token.encode()


def _position(value: bytes) -> Position | None:
    """How far the file of this mark was taken; None when that is to its end."""
    offset, line, _ = value.decode().split(" ", 2)
    return None if offset == _DONE else Position(int(offset), int(line))


def _directory(value: bytes) -> str:
    """The directory in which the file of this mark was."""
    return value.decode().split(" ", 2)[2]
