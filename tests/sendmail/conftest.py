"""Fixtures of the tests of the sendmail command."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sendmail.helpers import make_directory


@pytest.fixture
def pickup(tmp_path: Path) -> Path:
    """A pickup directory of an MTA that is down."""
    return make_directory(tmp_path / "pickup")


@pytest.fixture
def open_pickup() -> Iterator[Path]:
    """One that every user may write into and none may read, of an MTA with an id of its own."""
    with tempfile.TemporaryDirectory(prefix="mta-") as path:
        Path(path).chmod(0o755)
        directory = make_directory(Path(path) / "pickup")
        for one in (directory, directory / "tmp"):
            os.chown(one, 64_001, 64_002)
            one.chmod(0o3733)
        yield directory
