"""When a store in a gevent process writes: in a process of its own, as pytest's is not patched."""

import subprocess
import sys
from pathlib import Path


def test_what_nobody_waits_for_is_given_the_same_time_to_gather_at_every_group(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.control.patience", str(tmp_path)],
                          capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
    assert done.stdout.split() == ["patient", "patient"]
