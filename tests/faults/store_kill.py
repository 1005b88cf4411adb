"""kill -9 at every call by which a store changes its files, LMDB's own calls included.

    python -m tests.faults.store_kill --all          every call, each write three times: before, torn, after it
    python -m tests.faults.store_kill --points 200   a sample of that

The same life of a store is led again and again, in forked processes that have diskshim.c loaded; the n-th ends at its
n-th call. Then the shard is recovered, often by a process that is killed in that as well, and checked.
(strace can kill at a call, too, but it counts for each thread by itself and takes 20 times as long.)
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mta.queue.fileops import FileOps
from tests.faults.diskshim import Shim, Tear, build
from tests.faults.store_life import Account, Content, examine, live, settings
from tests.queue.helpers import Bench

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 84
RECOVERY_CALLS: Final = 40  # a recovery that is killed is killed in one of the first so many


def fork(work: Callable[[], None]) -> int:
    """Do `work` in a child; the status it ended with, as of waitpid(2)."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def killed(status: int) -> bool:
    """Whether the process was killed; any other end but a good one is an error."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"the life ended with status {status}"
    return False


class Sweep:
    """Lives that end at given calls. It runs in a process that has the shim loaded."""

    def __init__(self, seed: int, rounds: int) -> None:
        self.points = 0
        self._shim = Shim.attach()
        self._seed = seed
        self._rounds = rounds

    def calls(self) -> int:
        """How many calls this life has, from its first to its last."""
        self._life(self._shim.root / "whole", 0, Tear.NOTHING)
        return self._shim["calls"]

    def _life(self, directory: Path, at: int, tear: Tear) -> bool:
        directory.mkdir()
        self._shim.reset()
        self._shim["unsynced"] = 1  # what is on stable storage is for tests/faults/power.py
        self._shim["tear"], self._shim["kill_at"] = tear, at
        status = fork(lambda: live(directory / "000", self._diary(directory), self._seed, self._rounds))
        self._shim["kill_at"] = 0
        return killed(status)

    def _diary(self, directory: Path) -> Path:
        """Not below the root: its lines are no calls of the store."""
        return self._shim.root.with_name(f"diary-{directory.name}")

    def point(self, at: int, tear: Tear, chance: random.Random) -> None:
        """Kill at call `at`, in the recovery after it more often than not, and check."""
        directory = self._shim.root / f"{at}-{tear.name}"
        self._life(directory, at, tear)
        self.points += 1
        for _ in range(chance.choice((0, 1, 1, 2))):
            self._shim.reset()
            self._shim["unsynced"] = 1
            self._shim["tear"] = chance.choice(list(Tear))
            self._shim["kill_at"] = chance.randrange(1, RECOVERY_CALLS)
            killed(fork(lambda: Bench(directory / "000", settings(), FileOps()).store.abandon()))
            self.points += 1
        self._shim.reset()
        self._check(directory, chance)
        shutil.rmtree(directory)
        self._diary(directory).unlink()

    def _check(self, directory: Path, chance: random.Random) -> None:
        """Also that a next life goes well, and all is in order when it ends."""
        account = Account(Content(), self._diary(directory).read_bytes())
        content = examine(directory / "000", account)
        if chance.random() < 0.2:
            again = self._diary(directory).with_suffix(".next")
            live(directory / "000", again, self._seed + 1, 10, now_us=account.now_us)
            following = Account(content, again.read_bytes(), suspects=account.flown, now_us=account.now_us)
            examine(directory / "000", following)
            again.unlink()


def run(seed: int, rounds: int, points: int | None) -> None:
    """The sweep, in a process that has the shim loaded. `points` None: all."""
    started = time.monotonic()
    chance = random.Random(seed)
    sweep = Sweep(seed, rounds)
    total = sweep.calls()
    places = [(at, tear) for at in range(1, total + 1) for tear in Tear]
    if points is not None:
        step = max(len(places) // points, 1)
        places = places[chance.randrange(step)::step]
    for at, tear in places:
        try:
            sweep.point(at, tear, random.Random(f"{seed} {at} {tear}"))
        except BaseException:
            print(f"seed {seed}, {rounds} rounds: killed at call {at} of {total}, tear {tear.name}", file=sys.stderr)
            raise
    print(f"seed {seed}: a life of {total} calls, {len(places)} ends of it, {sweep.points} kills with those in "
          f"recoveries, {time.monotonic() - started:.0f} s")


def sweep(seed: int, rounds: int, points: int | None) -> subprocess.CompletedProcess[str]:
    """Run the sweep in a process of its own, with the shim."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mta-kill-", dir=memory if memory.is_dir() else None) as name:
        shim = Shim(build(Path(name)), Path(name) / "root")
        shim.root.mkdir()
        arguments = [f"--seed={seed}", f"--rounds={rounds}", "--loaded"]
        arguments += ["--all"] if points is None else [f"--points={points}"]
        return subprocess.run([sys.executable, "-m", "tests.faults.store_kill", *arguments], cwd=ROOT,
                              env=shim.environment(os.environ), text=True, capture_output=True, check=False)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every point")
    parser.add_argument("--points", type=int, default=100, metavar="N", help="about so many")
    parser.add_argument("--seed", type=int, default=1, help="of the first life")
    parser.add_argument("--lives", type=int, default=1, metavar="N", help="lives with seeds after that")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="how long a life is")
    parser.add_argument("--loaded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    points = None if options.all else options.points
    if options.loaded:
        run(options.seed, options.rounds, points)
        return 0
    for seed in range(options.seed, options.seed + options.lives):
        done = sweep(seed, options.rounds, points)
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
