"""Loss of power at every moment of a store's life, with everything that the disk may then hold.

    python -m tests.faults.store_power --all --samples 20    every moment, 20 states each beside the systematic ones
    python -m tests.faults.store_power --states 1000         about so many

A life is led by a process that has diskshim.c loaded, which records its writes, syncs and changes of names, LMDB's own
included. The record is then played to a model of the disk (tests/faults/power.py): before each call that changes what
the disk may hold, some of those states are made and recovered from. On some of them a second life is led in the same
way, so that recovery, too, loses power.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack_into
from typing import Final

from tests.faults.diskshim import Kind, Op, Record, Shim, build, read_log, record
from tests.faults.power import Disk
from tests.faults.store_kill import fork
from tests.faults.store_life import Account, Content, examine, live
from tests.queue.helpers import START_US

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 84
SECOND_ROUNDS: Final = 8
SECOND_SHARE: Final = 0.15
SYNC_US: Final = 150  # so that the threads of the store overlap as they do on a disk
DEPTH: Final = 3  # lives in a row
_CHANGES: Final = (Op.WRITE, Op.TRUNCATE, Op.ALLOCATE, Op.SYNC_END, Op.RENAME, Op.UNLINK, Op.MKDIR)
_DIARY: Final = "diary"


class Blackout:
    """Lives, and what is left of them when the power goes. It runs in a process that has the shim loaded."""

    def __init__(self, seed: int, *, keep: int, fail: int) -> None:
        """`keep` closed event files are kept. With `fail` the n-th sync of each first life fails."""
        self.states = 0
        self.moments = 0
        self.lives = 0
        self._shim = Shim.attach()
        self._seed = seed
        self._keep = keep
        self._fail = fail
        self._work = self._shim.root.with_name("work")
        self._work.mkdir()

    def life(self, base: Content, load: Path | None, depth: int, rounds: int, now_us: int) -> Recorded:
        """Lead one life, on the disk `load`, and record it."""
        self.lives += 1
        home = self._shim.root / "home"
        shutil.rmtree(home, ignore_errors=True)
        if load is None:
            home.mkdir()
        else:
            load.rename(home)
        disk, whole = (Disk(home, load=load is not None) for _ in range(2))
        log = self._work / f"log{depth}"

        def lead() -> None:
            record(log)
            live(home / "000", home / _DIARY, self._seed + self.lives, rounds, boot=f"boot {depth}", keep=self._keep,
                 close=self.lives % 3 > 0, now_us=now_us)
            record(None)

        self._shim.reset()
        self._shim["unsynced"], self._shim["delay_us"] = 1, SYNC_US
        if self._fail and depth == 1:
            self._shim.fail(Kind.SYNC, errno.EIO, self._fail, 1)
        status = fork(lead)
        self._shim.reset()
        assert status == 0, f"a life ended with status {status}"
        paths: dict[int, str] = {}
        for step in read_log(log):
            whole.take(step)
            if step.op is Op.OPEN:
                paths[step.fd] = step.data.decode()
            elif step.op is Op.SYNC_END and step.result:
                print(f"seed {self._seed}: a sync of {paths[step.fd]} failed", file=sys.stderr)
        assert whole.is_as_in(home), "there are calls that were not recorded"
        log = log.rename(self._work / f"log{depth}-{self.lives}")
        return Recorded(self.lives, base, disk, log, home, now_us)

    def play(self, life: Recorded, chance: random.Random, share: float, samples: int, second: float,
             depth: int = 1) -> None:
        """Lose power at a `share` of the moments of a life, and `second` of the states are lived on from."""
        said = bytearray()
        for moment, step in enumerate(life.steps(said)):
            if chance.random() < share:
                self.moments += 1
                try:
                    self._lose(life, bytes(said), chance, samples, second, depth)
                except BaseException:
                    print(f"seed {self._seed}: power lost in life {life.number} ({depth} in a row), at call {moment}, "
                          f"before {step.op.name} {step.fd} {step.a} {len(step.data)}", file=sys.stderr)
                    raise
        life.log.unlink()

    def _lose(self, life: Recorded, said: bytes, chance: random.Random, samples: int, second: float,
              depth: int) -> None:
        """Lose power now, and check some of what may be left."""
        boot = f"boot {depth + 1}"
        state = self._work / f"state{depth}"
        account = Account(life.base, said, now_us=life.now_us)
        for keep, keep_name in life.disk.possibilities(chance, samples):
            self.states += 1
            dice = chance.randrange(1 << 60)
            _scribble(life.disk.materialize(state, keep, keep_name), account, random.Random(dice))
            content = examine(state / "000", account, boot=boot, keep=self._keep,
                              in_order=not self._fail or depth > 1, refused_may_return=bool(self._fail))
            shutil.rmtree(state)
            if depth < DEPTH and chance.random() < second:
                _scribble(life.disk.materialize(state, keep, keep_name), account, random.Random(dice))
                following = self.life(content, state, depth + 1, SECOND_ROUNDS, account.now_us)
                self.play(following, chance, SECOND_SHARE, 1, second, depth + 1)


class Recorded:
    """A life that was recorded."""

    def __init__(self, number: int, base: Content, disk: Disk, log: Path, home: Path, now_us: int) -> None:
        self.number = number
        self.base = base  # what was in the shard before
        self.disk = disk  # as it was before; `steps` takes it through the life
        self.log = log
        self.now_us = now_us
        self._diary = os.fsencode(home / _DIARY)

    def steps(self, said: bytearray) -> Iterator[Record]:
        """Stop before each call that changes what the disk may hold, with `said` in the diary; and at the end."""
        diary = -1
        last: Record | None = None
        for step in read_log(self.log):
            if step.op is Op.OPEN and step.data == self._diary:
                diary = step.fd
            elif step.op is Op.WRITE and step.fd == diary:
                said += step.data
            else:
                if step.op in _CHANGES or (step.op is Op.OPEN and (step.result or step.a & os.O_TRUNC)):
                    yield step
                self.disk.take(step)
                last = step
        if last is not None:
            yield last


def _scribble(unknown: list[Path], account: Account, dice: random.Random) -> None:
    """Files written through a map that was never synced: any part of old and new may be in them."""
    keys = sorted(account.flown) or [(1, 0)]
    for path in unknown:
        assert path.name == "inflight"
        content = bytearray(path.read_bytes())
        if dice.random() < 0.7:
            for slot in range(0, min(len(content), 64 * 16) - 15, 16):
                if dice.random() < 0.4:
                    pack_into("<QII", content, slot, *dice.choice(keys), 0)
        if dice.random() < 0.2:
            del content[dice.randrange(len(content) + 1):]
        path.write_bytes(content)


def run(options: argparse.Namespace) -> None:
    """Lives and losses, in a process that has the shim loaded."""
    started = time.monotonic()
    blackout = Blackout(options.seed, keep=options.keep, fail=options.fail_sync)
    chance = random.Random(options.seed)
    life = blackout.life(Content(), None, 1, options.rounds, START_US)
    share = 1.0
    if not options.all:
        moments = sum(step.op in _CHANGES for step in read_log(life.log))
        share = min(1.0, options.states / (moments * (2 + options.samples)))
    blackout.play(life, chance, share, options.samples, options.second)
    print(f"seed {options.seed}: power lost at {blackout.moments} moments of {blackout.lives} lives, "
          f"{blackout.states} states of the disk, {time.monotonic() - started:.0f} s")


def lose_power(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run this module with `arguments` in a process of its own, with the shim."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="mta-power-", dir=memory if memory.is_dir() else None) as name:
        shim = Shim(build(Path(name)), Path(name) / "root")
        shim.root.mkdir()
        return subprocess.run([sys.executable, "-m", "tests.faults.store_power", *arguments, "--loaded"], cwd=ROOT,
                              env=shim.environment(os.environ), text=True, capture_output=True, check=False)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every moment")
    parser.add_argument("--states", type=int, default=1000, metavar="N", help="about so many states")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="of the states of each moment")
    parser.add_argument("--second", type=float, default=0.01, metavar="SHARE",
                        help="of the states that are lived on from")
    parser.add_argument("--seed", type=int, default=1, help="of the first life")
    parser.add_argument("--lives", type=int, default=1, metavar="N", help="lives with seeds after that")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="how long a life is")
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="closed event files that are kept; 0: all")
    parser.add_argument("--fail-sync", type=int, default=0, metavar="N", help="the sync that fails")
    parser.add_argument("--loaded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loaded:
        run(options)
        return 0
    for seed in range(options.seed, options.seed + options.lives):
        done = lose_power([*sys.argv[1:], f"--seed={seed}"])
        print(done.stdout + done.stderr, end="", flush=True)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
