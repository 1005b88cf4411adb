"""Work in threads of gevent's pool."""

from __future__ import annotations

import threading

import pytest

from mta.loop.threads import in_thread


def test_what_comes_of_it_is_told_to_the_caller_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """A value comes back; an exception is raised and nothing is printed, as somebody expects it."""
    assert in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(FileNotFoundError):
        in_thread(open, "/nonexistent/file")
    assert capfd.readouterr() == ("", "")
