"""How connections are spread over workers that accept from one socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mta.inject.balance import Balance


def test_only_workers_that_take_connections_count(tmp_path: Path) -> None:
    """A worker is ahead when another one has fewer sessions; one that is not there, or has left, is no other one."""
    one, two = (Balance(str(tmp_path), number, 3) for number in (0, 1))
    one.tell(2)
    assert not one.is_ahead
    two.tell(2)
    assert not one.is_ahead
    assert not two.is_ahead
    two.tell(0)
    assert one.is_ahead
    assert not two.is_ahead
    two.leave()
    two.tell(1)
    assert not one.is_ahead
    two = Balance(str(tmp_path), 1, 3)
    assert not one.is_ahead
    two.tell(1)
    assert one.is_ahead


def test_a_burst_is_spread_and_nobody_is_left_outside(tmp_path: Path) -> None:
    """Who has more sessions lets the other one go first, but takes the connection when that does not."""
    done = subprocess.run([sys.executable, "-m", "tests.inject.balanced", str(tmp_path)],
                          capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["10 and 10", "5 and 0"]
