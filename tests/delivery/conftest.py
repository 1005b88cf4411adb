"""What tests of the table of limits begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mta.delivery import limit_table
from tests.delivery.limits_table import Table


@pytest.fixture
def no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left of the table of an earlier test."""
    monkeypatch.setattr(limit_table, "_trouble", limit_table._Trouble())


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """An empty one, closed afterwards."""
    opened: list[Any] = []
    real = lmdb.open

    def open_once(*args: Any, **options: Any) -> Any:
        if not opened:
            opened.append(real(*args, **options))
        return opened[0]

    monkeypatch.setattr(lmdb, "open", open_once)
    yield Table(tmp_path)
    opened[0].close()
