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
goes to `failed/`. Behind `XACK OFF` a recipient that is refused goes there alone, with a copy of its message, before
the mark says that its transaction is done: a crash in between has it written again, in the same place. Portions of a
batch and other files take turns, so that a huge batch does not keep others waiting; small batches share a commit, as
files do.

There is no gevent here and no clock: `run` carries a blocking function to a thread, `pause` waits, the store is a
`PickupStore`. Memory is bounded by BATCH names and PORTION_BYTES, or one message if that is larger; what the hub does
at once by RECIPIENTS_AT_ONCE likewise.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mta.config.checks import NO_CHANGES, surely_refused
from mta.config.schema import Config
from mta.inject.batch import BEGIN, Position
from mta.inject.claims import Claim, FileError, SpoolDirectory, shown
from mta.inject.formats import LABEL_FIELDS, FormatError, Submission
from mta.inject.intake import Accepted, Intake, Source
from mta.inject.labels import KINDS
from mta.inject.reading import Batch, File, Portion, Transaction, read_files, read_portions
from mta.queue.errors import StoreError
from mta.smtp.data import stuff
from mta.smtp.reply import Reply

BATCH: Final = 64
"""Files claimed at once, transactions of a batch accepted at once, and batches under way."""

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
        self._published = ""
        self._batches: deque[Batch] = deque()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over the options of a new configuration, for files that are claimed from now on.

        The intake takes them over, too: that of a shard which is only emptied has nobody else to tell it.
        """
        self._intake.configure(config)
        self._limits = config.smtp
        self._hostname = config.hostname
        self._label_fields = LABEL_FIELDS.union(
            name.lower().encode() for kind in KINDS for name in getattr(config.labels, kind))
        options = next((one for one in config.pickup if one.directory == self.directory.directory), None)
        self._labels = options.labels if options is not None else None
        self._checks = options.checks if options is not None else NO_CHANGES
        self._settings = json.dumps({
            "hostname": config.hostname,
            "message_size": config.smtp.message_size,
            "recipients": config.smtp.recipients,
            "line_length": config.smtp.line_length,
            "command_length": config.smtp.command_length,
            "refused": surely_refused(config.checks, (one.checks for one in config.tenants.values()), self._checks),
        })

    def close(self) -> None:
        """Let go of the directory and of what is open in it. Claims stay for the next start."""
        for batch in self._batches:
            batch.close()
        self._batches.clear()
        self.directory.close()

    def adopt(self) -> None:
        """Finish what was begun and not done: by an earlier process, or by this one when the disk failed. Call it
        first. Raises as `step`."""
        self._published = ""  # the directory may be a new one
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
                self._batches.append(Batch(claim, position))
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
        if self._takes_new and self._published != self._settings:
            self._publish()
        found = False
        if self._takes_new and len(self._batches) < BATCH:
            claims = self._run(self.directory.claim, BATCH)
            found = bool(claims)
            self._batches.extend(Batch(claim) for claim in claims if claim.is_batch)
            self._take([claim for claim in claims if not claim.is_batch])
        if self._batches:
            self._take_portions()
            found = True
        return found

    def _publish(self) -> None:
        self._published = self._settings
        try:
            self._run(self.directory.publish, self._settings)
        except OSError as error:  # mail goes on without it
            log.warning("%s/.settings: %s", shown(self.directory.directory), error.strerror)

    # -- message files ----------------------------------------------------------------------------------------------

    def _take(self, claims: list[Claim]) -> None:
        while claims:
            count, read = self._run(read_files, self.directory, claims, self._limits, self._label_fields)
            claims = claims[count:]
            failures = [(claim, found) for claim, found in read if isinstance(found, str)]
            messages = [(claim, found) for claim, found in read if isinstance(found, File)]
            taken = self._accept_files(messages, failures)
            self._run(self._settle, taken, failures)
            self.statistics.files += len(taken)
            if taken:
                self._store.forget([_key(claim) for claim in taken])

    def _accept_files(
        self, messages: list[tuple[Claim, File]], failures: list[tuple[Claim, str]]
    ) -> list[Claim]:
        """Commit the messages; those that are refused become failures. Returns the claims that were accepted."""
        value = f"{_DONE} 0 {shown(self.directory.directory)}".encode()

        def prepare() -> tuple[list[Accepted], list[Claim], list[tuple[Claim, str]]]:
            accepted: list[Accepted] = []
            claims: list[Claim] = []
            refused: list[tuple[Claim, str]] = []
            for claim, file in messages:
                prepared = self._prepare(claim, file.submission, file.uid)
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

    def _take_portions(self) -> None:
        """Accept the next transactions of the batches whose turn it is, in one commit."""
        try:
            portions = self._run(read_portions, self.directory, self._batches, BATCH, self._limits, self._hostname)
            ended = self._accept_portions(portions)
        except BaseException:
            for batch in self._batches:
                batch.close()  # it has read ahead of what was accepted
            raise
        marked: list[bytes] = []
        for portion in portions:
            batch = self._batches.popleft()
            if portion.gone or batch.claim in ended:
                if batch.position != BEGIN:
                    marked.append(_key(batch.claim))
            else:
                self._batches.append(batch)
        if marked:
            self._store.forget(marked)

    def _accept_portions(self, portions: list[Portion]) -> set[Claim]:
        """Commit the transactions. Returns the batches that are done; on disk they are settled."""
        while True:
            accepted: list[Accepted] = []
            marks: list[tuple[bytes, bytes]] = []
            refusals: list[tuple[Claim, Transaction]] = []
            results: list[tuple[Portion, Position, FormatError | FileError | None]] = []
            for portion in portions:
                batch, position, failure = portion.batch, portion.batch.position, portion.failure
                for transaction in portion.transactions:
                    if transaction.submission.envelope.recipients:
                        prepared = self._prepare(batch.claim, transaction.submission, batch.uid)
                        if isinstance(prepared, Reply):
                            failure = FormatError(transaction.line, str(prepared))
                            break
                        accepted.append(prepared)
                    if transaction.refused:
                        refusals.append((batch.claim, transaction))
                    position = transaction.end
                if position != batch.position:
                    value = _value(position, shown(self.directory.directory))
                    marks.append((_key(batch.claim), value))
                if failure is None and portion.ended and position == BEGIN:
                    failure = FileError("there is no transaction in it")
                results.append((portion, position, failure))
            if refusals:
                self._run(self._put_refused_aside, refusals)  # before the mark says that they are done with
            if not marks or self._committed(accepted, marks):
                break
        ended: list[tuple[Batch, FormatError | FileError | None]] = []
        for portion, position, failure in results:
            portion.batch.position = position
            if not portion.gone and (portion.ended or failure is not None):
                ended.append((portion.batch, failure))
        if ended:
            self._run(self._settle_batches, ended)
        return {batch.claim for batch, _ in ended}

    def _put_refused_aside(self, refusals: list[tuple[Claim, Transaction]]) -> None:
        """In a thread: recipients that were refused behind XACK OFF, with their messages, as a batch to be mended."""
        for claim in dict.fromkeys(claim for claim, _ in refusals):
            transactions = [one for its, one in refusals if its == claim]
            lines = [refused for one in transactions for refused in one.refused]
            reasons = ["recipients that were refused, with their messages; the others were accepted"]
            reasons += [f"line {refused.line}: {refused.reply}" for refused in lines]
            content = (
                piece for one in transactions for piece in (
                    one.mail, b"\r\n", *(refused.command + b"\r\n" for refused in one.refused), b"DATA\r\n",
                    stuff(one.submission.content), b".\r\n"))
            target = self.directory.fail_some(claim, transactions[0].line, content, reasons)
            log.warning("%s: %d recipients were refused; they are in %s", shown(claim.name), len(lines), shown(target))

    def _settle_batches(self, ended: list[tuple[Batch, FormatError | FileError | None]]) -> None:
        """In a thread: these batches are done; what could not be taken of them is put aside."""
        done: list[Claim] = []
        for batch, failure in ended:
            batch.close()
            claim = batch.claim
            if failure is None:
                self.statistics.files += 1
            elif batch.position == BEGIN:
                reason = str(failure)
                self._failed(claim, self.directory.fail(claim, reason), reason)
                continue
            else:
                line = batch.position.line
                reason = f"{failure}; what stood before line {line} was accepted, this file has the rest"
                if isinstance(failure, FormatError):
                    its_line = failure.line - line + 1 + batch.position.goes_on  # which is said again there
                    reason = f"{reason} (line {failure.line} is its line {its_line})"
                self._failed(claim, self.directory.fail_rest(claim, batch.position, reason), reason)
            done.append(claim)
        if done:
            self.directory.remove(done)

    # -- both -------------------------------------------------------------------------------------------------------

    def _prepare(self, claim: Claim, submission: Submission, uid: int) -> Accepted | Reply:
        source = Source.pickup(shown(f"{self.directory.directory}/{claim.name}"), uid, self._labels, self._checks)
        try:
            return self._intake.prepare(submission.envelope, submission.content, source)
        except MemoryError:
            raise  # no fault of the file
        except Exception:
            log.exception("bug: %s could not be taken", shown(claim.name))
            return Reply(554, "5.3.0", ("Internal error; the log has more",))

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


_PREFIX: Final = b"pickup:"


def _key(claim: Claim) -> bytes:
    return _PREFIX + claim.token.encode()


def _value(position: Position, directory: str) -> bytes:
    """The mark of a file that was taken up to here."""
    return f"{position.offset}{'+' if position.goes_on else ''} {position.line} {directory}".encode()


def _position(value: bytes) -> Position | None:
    """How far the file of this mark was taken; None when that is to its end."""
    offset, line, _ = value.decode().split(" ", 2)
    return None if offset == _DONE else Position(int(offset.rstrip("+")), int(line), offset.endswith("+"))


def _directory(value: bytes) -> str:
    """The directory in which the file of this mark was."""
    return value.decode().split(" ", 2)[2]
