"""Many connections that are ready at once: in a process of its own, as pytest's is not patched."""

import subprocess
import sys
from pathlib import Path


def test_a_burst_is_served_in_turns_and_others_have_theirs_in_between() -> None:
    """A turn of the loop serves no more connections than it has time for; the rest is served after it, all of it."""
    done = subprocess.run([sys.executable, "-m", "tests.loop.burst_program"], capture_output=True, text=True,
                          timeout=60, cwd=Path(__file__).parents[2], check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["served"]
