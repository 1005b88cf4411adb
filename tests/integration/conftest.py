"""Fixtures of the integration tests: a sandbox Internet, and MTAs on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: Unix sockets in it may not exceed 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mta-") as path:
        yield Path(path)


@pytest.fixture
def open_directory(directory: Path) -> Path:
    """A directory that servers which give up root can reach."""
    directory.chmod(0o755)
    return directory


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A small Internet where every domain accepts."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def make_mta(directory: Path, sandbox: Sandbox) -> Iterator[Callable[..., Mta]]:
    """Makes MTAs that see the sandbox as the Internet; they end with the test."""
    made: list[Mta] = []

    def make(**changes: Any) -> Mta:
        mta = Mta(directory / f"mta{len(made)}", sandbox.dns, sandbox.smtp_port, **changes)
        made.append(mta)
        return mta

    yield make
    for mta in made:
        mta.kill()
