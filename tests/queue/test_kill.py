"""kill -9 at random moments, of a process that accepts, updates and removes as fast as it can."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from tests.queue.helpers import START_US, Bench, removal

ROUNDS = 5
MOST_ROUNDS = 100  # while too little was said, as on a slow disk
ENOUGH = 200  # lines, in all
ROOT = Path(__file__).parents[2]


def life(directory: Path, seed: int, seconds: float) -> list[list[str]]:
    """Run the program, kill it after `seconds` of work; what it said."""
    process = subprocess.Popen([sys.executable, "-m", "tests.queue.kill_program", str(directory), str(seed)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    # Not buffered: what `readline` had read ahead `communicate` would not see.
    assert process.stdout is not None
    assert process.stderr is not None
    timer = threading.Timer(seconds, process.kill)
    first = process.stdout.readline()
    timer.start()
    said, errors = process.communicate(timeout=60)
    assert (first, errors) == (b"ready\n", b""), errors.decode()
    return [line.split() for line in said.decode().splitlines(keepends=True) if line.endswith("\n")]


def test_nothing_that_was_confirmed_is_lost(tmp_path: Path) -> None:
    """Over several lives: what was accepted is there, what was removed is not, every event is there once (I1, I2)."""
    rng = random.Random(7)
    directory = tmp_path / "000"
    queue: dict[int, int] = {}  # due time
    events: Counter[bytes] = Counter()
    total = 0
    for seed in range(MOST_ROUNDS):
        if seed >= ROUNDS and total > ENOUGH:
            break
        sure, leaving, gone = dict(queue), set(), set()
        for word, number, *rest in life(directory, seed, rng.uniform(0.02, 0.2)):
            if word == "a":
                sure[int(number)] = START_US
                events[b"a " + number.encode()] += 1
            elif word == "r":
                leaving.add(int(number))
            elif word == "R":
                gone.add(int(number))
                events[b"r " + number.encode()] += 1
            else:
                sure[int(number)] = int(rest[0])
            total += 1
        bench = Bench(directory)
        found = {d.message.id: d for d in bench.queue()}
        assert sure.keys() - leaving <= found.keys()
        assert not gone & found.keys()
        assert all(d.due_us >= sure.get(number, 0) for number, d in found.items())
        assert all(len(bench.store.body(d.message)) == d.message.size for d in found.values())
        assert bench.counts().deliveries == len(found)
        logged = Counter(bench.events().splitlines())
        assert not events - logged
        assert max(logged.values(), default=1) == 1
        assert {b"a %d" % number for number in found} <= logged.keys()
        assert not {b"r %d" % number for number in found} & logged.keys()
        events = logged
        bench.commit(removal(list(found.values())[:5], *(b"r %d" % number for number in list(found)[:5])))
        events.update(b"r %d" % number for number in list(found)[:5])
        queue = {d.message.id: d.due_us for d in bench.queue()}
        bench.close()
    assert total > ENOUGH
