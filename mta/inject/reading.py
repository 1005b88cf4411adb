"""Read claimed files and the next portions of batches, as much as one commit takes.

What is wrong with a file is told about that file and costs no other one. What we lack ourselves - descriptors, memory -
is no fault of a file and is raised as OSError: the files stay as they are. All of it blocks on the disk.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mta.config.schema import SmtpIn
from mta.inject.batch import BEGIN, BatchReader, Position, Refused
from mta.inject.claims import Claim, FileError, SpoolDirectory, shown
from mta.inject.formats import LABEL_FIELDS, FormatError, Submission, parse_message
from mta.queue.shortage import SHORTAGE

PORTION_BYTES: Final = 4_000_000
"""Content accepted in one commit, when there is more than one message in it."""
RECIPIENTS_AT_ONCE: Final = 1000
"""Likewise: the hub makes a delivery for each of their domains before it does anything else."""

log = logging.getLogger(__name__)


class File(NamedTuple):
    """The message in a file, and whose file it is."""

    submission: Submission
    uid: int


class Transaction(NamedTuple):
    """A transaction of a batch: the line where it begins, where it ends, and what of it was refused.

    When all its recipients were refused, the submission has none.
    """

    submission: Submission
    line: int
    end: Position
    mail: bytes
    refused: list[Refused]


@dataclass(slots=True)
class Batch:
    """A batch that is being taken."""

    claim: Claim
    position: Position = BEGIN  # behind the last transaction that was accepted
    reader: BatchReader | None = None
    uid: int = -1  # whose file it is, once it was opened

    def close(self) -> None:
        """Close the file."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


@dataclass(slots=True)
class Portion:
    """Some transactions of a batch, and what came behind them."""

    batch: Batch
    transactions: list[Transaction] = field(default_factory=list)
    failure: FormatError | FileError | None = None
    ended: bool = False
    gone: bool = False  # somebody removed the file from under us


def read_files(
    directory: SpoolDirectory, claims: list[Claim], limits: SmtpIn, label_fields: frozenset[bytes] = LABEL_FIELDS
) -> tuple[int, list[tuple[Claim, File | str]]]:
    """How many files were read, and the message in each or what is wrong with it. Those that vanished are left out."""
    found: list[tuple[Claim, File | str]] = []
    size = recipients = 0
    for count, claim in enumerate(claims):
        if size > PORTION_BYTES or recipients >= RECIPIENTS_AT_ONCE:
            return count, found
        try:
            data, uid = directory.read(claim, limits.message_size)
            submission = parse_message(data, limits, label_fields)
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
            recipients += len(submission.envelope.recipients)
            found.append((claim, File(submission, uid)))
    return len(claims), found


def read_portions(
    directory: SpoolDirectory, batches: Iterable[Batch], most: int, limits: SmtpIn, hostname: str
) -> list[Portion]:
    """The next transactions of the first batches, until there are `most`, PORTION_BYTES or RECIPIENTS_AT_ONCE of
    them."""
    portions: list[Portion] = []
    left, bytes_left, recipients_left = most, PORTION_BYTES, RECIPIENTS_AT_ONCE
    for batch in batches:
        portion = Portion(batch)
        portions.append(portion)
        try:
            if batch.reader is None:
                file = directory.open_file(batch.claim)
                batch.uid = os.fstat(file.fileno()).st_uid
                batch.reader = BatchReader(file, limits, hostname, batch.position)
            while left > 0 and bytes_left > 0 and recipients_left > 0:
                submission = batch.reader.next()
                if submission is None:
                    portion.ended = True
                    break
                left -= 1
                bytes_left -= len(submission.content)
                recipients_left -= len(submission.envelope.recipients)
                reader = batch.reader
                portion.transactions.append(
                    Transaction(submission, reader.begin, reader.position, reader.mail, reader.refused))
        except (FormatError, FileError) as error:
            portion.failure = error
        except FileNotFoundError:
            portion.gone = True
        except MemoryError:
            raise _no_memory(batch.claim) from None
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            portion.failure = FileError(f"it cannot be read: {error.strerror}")
        except Exception:
            log.exception("bug: %s could not be read", shown(batch.claim.name))
            portion.failure = FileError("internal error; the log has more")
        if left <= 0 or bytes_left <= 0 or recipients_left <= 0:
            break
    return portions


def _no_memory(claim: Claim) -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), claim.name)
