"""The real hub, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gevent, sys
from gevent.hub import get_hub
from mta.delivery.hub import GeventHub

hub, loop, turns = GeventHub(), get_hub().loop, []

def work(rounds):
    turns.append(loop.iteration)
    if rounds:
        if sys.argv[1] == "sleep":
            hub.sleep(0)
            work(rounds - 1)
        else:
            hub.later(0.0, work, rounds - 1)

gevent.spawn(work, 60)
gevent.wait()
print(len(turns), len(set(turns)))
"""


@pytest.mark.parametrize("how", ["sleep", "later"])
def test_who_lets_others_run_goes_on_in_another_turn(how: str) -> None:
    """Sockets, timers and threads are looked at in between, each time: gevent's `sleep(0)` would go on fifty times."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["61", "61"], done.stderr
