"""Fixtures of the supervisor's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.helpers import Fixture


@pytest.fixture
def mta(tmp_path: Path) -> Iterator[Fixture]:
    """A configuration with two workers and one listener, on which supervisors can be started."""
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.close()
