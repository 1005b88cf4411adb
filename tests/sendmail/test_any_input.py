"""Whatever is written to sendmail: it is refused at once, or the MTA takes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta.control.exits import OperatorError
from mta.sendmail.command import send
from mta.sendmail.message import Author
from mta.sendmail.options import Options
from mta.sendmail.settings import Settings
from tests.inject.pickup_helpers import MemoryStore, finish, left, make

pieces = st.sampled_from(
    [b"To: ", b"Cc:", b"Bcc: ", b"From: ", b"Resent-To: ", b"Resent-From:", b"Return-Path: ", b"Date: ",
     b"X-Receiver: ", b"a@b.example", b"<c@d.example>", b"root", b", ", b"\n", b"\n", b"\r\n", b"\r", b"\n ", b"\n\n",
     b"(", b'"', b"\xff", "ü".encode(), b"\0", b":", b";", b"<>", b"From x", b"\n.\n", b".", b"x" * 600, b" ", b"\t",
     b"QUIT", b"@x.example"]
)  # fmt: skip
contents = st.one_of(st.lists(pieces, max_size=25).map(b"".join), st.binary(max_size=300))
arguments = st.lists(st.sampled_from(
    ["a@b.example", "root", "ü@b.example", "a@ü.example", "", "<x@y.example>, z", "-f", "bad@", "a@b\nDATA", "(", "a b"]
), max_size=3)


@pytest.fixture(autouse=True, scope="module")
def _disks_are_fast() -> Iterator[None]:
    """These tests are not about what survives a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@given(contents, arguments, st.booleans(), st.booleans(),
       st.sampled_from([None, "", "<>", "s@s.example", "joe", "ü@s"]),
       st.sampled_from([None, "Name", "N\nBcc: x@x.example", "ü" * 100, '"\\']))
@example(b"\n" * 400, ["a@b.example"], False, True, None, None)
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_is_taken(
    content: bytes, recipients: list[str], from_header: bool, dots: bool, sender: str | None, name: str | None
) -> None:
    """No exit code 0 for a file that would end in `failed/`; and no address gets in but those of the caller."""
    options = Options(sender=sender, full_name=name, from_header=from_header, dots_are_text=dots, recipients=recipients)
    with tempfile.TemporaryDirectory() as path:
        store = MemoryStore()
        pickup = make(Path(path), store)
        try:
            sent = send(options, Settings(path, "host.example"), Author("joe"), content)
        except OperatorError as error:
            assert error.exit_code in (64, 65)  # noqa: PT017 - it need not be raised
            assert os.listdir(Path(path) / "tmp") == []
            return
        finally:
            finish(pickup)
            pickup.close()
        assert sent
        assert left(Path(path)) == []
        assert len(store.accepted) == 1
        assert "x@x.example" not in store.recipients()
        if not from_header:
            assert len(store.recipients()) <= len(recipients) + 1  # one argument has two addresses
