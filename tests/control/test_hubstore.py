"""When a store in a gevent process writes: in a process of its own, as pytest's is not patched."""

import subprocess
import sys
from pathlib import Path


def run(module: str, directory: Path) -> str:
    """What a module of tests prints about a store in `directory`."""
    done = subprocess.run([sys.executable, "-m", f"tests.control.{module}", str(directory)],
                          capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
    return done.stdout


def test_what_nobody_waits_for_is_given_the_same_time_to_gather_at_every_group(tmp_path: Path) -> None:
    assert run("patience", tmp_path).splitlines() == ["patient", "patient", "busy: written"]


def test_a_group_waits_for_the_messages_that_are_coming_and_for_nothing_else(tmp_path: Path) -> None:
    """The only client's message is written at once; with others, when there is nothing more to read; one beside which
    another is being sent waits for that, and both are one group; who does not come in time is not waited for again."""
    assert run("gathering", tmp_path).splitlines() == [
        "nobody comes: as soon as nothing is to be read", "the only client: at once", "one of two: waits",
        "one comes: waits", "it has come: 1 group", "it does not come: 0 to wait for",
    ]
