"""Clients that people have deliver through us, in every way that they offer; docs/clients.md is of the same cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.cases import CLIENTS, Case, attempt, cases
from tests.clients.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One for all clients."""
    with World() as one:
        yield one


# Those with the same mechanisms together: each change of the offer is a reload.
ALL = sorted((case for client in CLIENTS for case in cases(client)), key=lambda case: case.mechanism or "")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_delivers(world: World, case: Case) -> None:
    """What is sent arrives, byte for byte where the client sends it as it is, and by the way that was asked for."""
    if not case.client.version():
        pytest.skip(f"{case.client.name} needs {case.client.needs}")
    attempt(world, case)
