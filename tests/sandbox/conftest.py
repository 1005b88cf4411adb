"""One sandbox for all tests of a module: a test uses a domain of its own and sets its personality."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mta.sandbox.client import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox in which every domain accepts everything until a test says otherwise."""
    with Sandbox({"log_content": "1MB"}) as running:
        yield running
