"""The soak in short: everything goes wrong at once for half a minute, and the account is right."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.faults.soak import Soak

MINUTES = float(os.environ.get("MTA_SOAK_MINUTES", "0.35"))
SEED = int(os.environ.get("MTA_SOAK_SEED", "11"))


@pytest.mark.timeout(600 + 90 * MINUTES)
def test_short_soak() -> None:
    """Kills, moody receivers, reloads, full disks: each accepted recipient ends once, nothing is lost, what arrives
    twice was announced, and what the processes hold goes back to what it was."""
    with tempfile.TemporaryDirectory(prefix="mta-soak-") as directory:
        soak = Soak(Path(directory), MINUTES, SEED, sessions=3, backlog=3000, pause_s=1.0)
        try:
            soak.run()
        finally:
            soak.close()
    print(soak.result)
    assert soak.problems == []
    assert soak.result["arrived"] > 1000
