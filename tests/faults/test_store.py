"""The store under kill -9 at every call and under losses of power: short runs of what can run for long by hand."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults import store_kill, store_power
from tests.faults.diskshim import compiler

SEED = int(os.environ.get("MTA_FAULT_SEED", "0")) or random.randrange(1, 1 << 30)

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C compiler, for tests/faults/diskshim.c")


def test_nothing_is_lost_by_a_kill_at_any_call() -> None:
    """Killed before, in or after any call that changes a file, by us or by LMDB, and again in the recovery: what was
    confirmed is there, what was settled is gone, events are there once, and only what was in flight is suspect."""
    done = store_kill.sweep(SEED, store_kill.ROUNDS, 60)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.parametrize("arguments", [
    pytest.param(["--states=500"], id="power"),
    pytest.param(["--states=150", "--keep=2"], id="pruned events"),
    pytest.param(["--states=150", f"--fail-sync={1 + SEED % 80}", "--second=0"], id="after a failed sync"),
])
def test_nothing_is_lost_with_the_power(arguments: list[str]) -> None:
    """Whatever the order of syncs lets the disk hold when the power goes, torn and out of order, is recovered: all that
    was confirmed, in whole transactions, and what may have been delivered is marked. Also when a sync had failed."""
    done = store_power.lose_power([*arguments, f"--seed={SEED}"])
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
