"""What tests of whole spools begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.queue.helpers import empty_spool


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with nothing in it."""
    return empty_spool(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr("mta.queue.commits.RETRY_S", 0.01)
    monkeypatch.setattr("mta.queue.checkpointing.RETRY_S", 0.01)
