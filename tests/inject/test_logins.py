"""Reading the file of users again; `tests/inject/test_session_logins.py` has logins on sessions."""

from __future__ import annotations

import logging
from pathlib import Path

import gevent
import pytest

from mta.access.users import Users
from mta.config.schema import Access, Config
from mta.inject import logins


def test_what_keeps_the_file_from_being_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, such as no memory: it is told once, and the next look tries again."""
    def fail(path: str) -> Users:
        raise MemoryError

    caplog.set_level(logging.INFO)
    path = tmp_path / "users"
    path.touch(0o600)
    mine = logins.Logins(Config(hostname="mta.example", access=Access(users_file=str(path))))
    monkeypatch.setattr(logins, "read", fail)
    path.write_text("# changed\n")
    for _ in range(2):
        mine.refresh()
        while mine._state:
            gevent.sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == [
        "the changed file of users cannot be used, the users from before stay: MemoryError"]
    monkeypatch.undo()
    mine.refresh()
    while not caplog.records[1:]:
        gevent.sleep(0.001)
    assert caplog.records[1].getMessage() == f"{path}: 0 users"
    mine.close()
