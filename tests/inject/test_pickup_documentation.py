"""docs/pickup.md shows only what works."""

from __future__ import annotations

import io
import re
from pathlib import Path

from mta.config.schema import SmtpIn
from mta.inject.batch import BatchReader
from mta.inject.formats import parse_message
from mta.queue.records import NOTIFY_FAILURE, NOTIFY_NEVER

PAGE = Path(__file__).parents[2].joinpath("docs/pickup.md").read_text()


def examples(kind: str) -> list[bytes]:
    """The fenced blocks of one kind."""
    return [block.encode() for block in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)]


def test_the_messages_shown_are_taken() -> None:
    """Envelope in front and envelope in the header, with the recipients that a reader expects."""
    front, wishes, header = [parse_message(one, SmtpIn()) for one in examples("message")]
    assert [one.address for one in front.envelope.recipients] == ["bob@example.org", "carol@example.net"]
    assert front.envelope.sender == header.envelope.sender == "bounces+4711@news.example"
    assert [one.notify for one in wishes.envelope.recipients] == [NOTIFY_FAILURE, NOTIFY_NEVER]
    assert len(header.envelope.recipients) == 3
    assert b"archive" not in header.content


def test_the_batch_shown_is_taken() -> None:
    """Both transactions, the second with its dot."""
    (text,) = examples("bsmtp")
    reader = BatchReader(io.BytesIO(text), SmtpIn(), "mta.example")
    found = list(iter(reader.next, None))
    assert [one.envelope.envid for one in found] == ["run-7", None]
    assert found[1].content.endswith(b"\r\n.A line that begins with a dot has two.\r\n")
