"""Reading the file of users again; `tests/inject/test_session_access.py` has logins on sessions."""

from __future__ import annotations

import pytest

from mta.inject import logins


def test_what_keeps_the_file_from_being_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, such as no memory: the greenlet that waits for it gets it, and the next look tries again."""
    def fail(path: str) -> None:
        raise MemoryError

    monkeypatch.setattr(logins, "read", fail)
    assert isinstance(logins._users_or_why_not("users"), MemoryError)
