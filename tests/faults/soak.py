"""A real MTA at full load for minutes or hours, with everything going wrong at random; then the account.

    python -m tests.faults.soak --minutes 30 --seed 1

Three phases: a quiet beginning, after which the baseline is measured; the storm; a quiet end, in which the queue has
to drain and the processes to go back to the baseline. In the last third of the storm nothing is killed, so that the
processes which are measured at the end have lived through the rest of it. See tests/faults/README.md.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.faults.soak_account import Account
from tests.faults.soak_load import Files, Gate, Numbers, Session
from tests.integration.support import Mta

WORKERS: Final = 3
SESSIONS: Final = 8
BACKLOG: Final = 30_000  # recipients in the queue above which the load pauses
DISK: Final = 600_000_000
DRAIN_S: Final = 300.0
REPORT_S: Final = 60.0

# What the end may differ from the baseline, per process of a kind (the largest of each).
MEMORY_FACTOR: Final = 1.5
MEMORY_MORE: Final = 16_000_000
DESCRIPTORS_MORE: Final = 4
THREADS_MORE: Final = 0
SEGMENTS: Final = 3 * WORKERS  # in each shard: the one in use, the next, one that is kept to be used again

DOMAINS: Final = [f"d{number}.test" for number in range(24)]

# How a receiver may be; the first is how it is in the quiet.
PERSONALITIES: Final[list[dict[str, Any]]] = [
    {},
    {"latency": "30ms"},
    {"latency": "400ms"},
    {"greylist": "2s"},
    {"listening": False},
    {"connections": 2},
    {"messages": 3},
    {"messages": 5, "messages_reply": ""},
    {"rate": "20/s"},
    {"pipelining": False},
    {"pipelining_across": "dropped"},
    {"starttls": "offered"},
    {"starttls": "broken"},
    {"esmtp": False},
    {"rules": [{"at": "connect", "reply": "421 4.3.2 not now"}]},
    {"rules": [{"at": "ehlo", "share": 0.3, "drop": "rst"}]},
    {"rules": [{"at": "mail", "share": 0.5, "drop": "fin"}]},
    {"rules": [{"at": "rcpt", "share": 0.1, "reply": "550 5.1.1 no such user"}]},
    {"rules": [{"at": "rcpt", "share": 0.3, "times": 2, "reply": "451 4.2.1 later"}]},
    {"rules": [{"at": "data", "share": 0.2, "times": 1, "drop": "rst"}]},
    {"rules": [{"at": "body", "share": 0.1, "times": 1, "drop": "rst"}]},
    {"rules": [{"at": "dot", "share": 0.1, "times": 1, "drop": "rst"}]},
    {"rules": [{"at": "dot", "share": 0.1, "times": 1, "drop": "fin", "keep": True}]},
    {"rules": [{"at": "dot", "share": 0.05, "times": 1, "hang": True}]},
    {"rules": [{"at": "dot", "share": 0.1, "reply": "554 5.7.1 spam"}]},
    {"rules": [{"at": "dot", "share": 0.3, "times": 1, "reply": "421 4.7.0 too many complaints"}]},
    {"dns": {"answer": "servfail"}},
    {"dns": {"answer": "timeout"}},
    {"dns": {"mx": ["10 mx1.{domain} closed", "20 mx2.{domain}"]}},
]

# What a receiver offered at the beginning of a session and no longer knows when it has changed in the middle.
MOODS: Final = frozenset({"pipelining_not_offered"})

CONFIG: Final[dict[str, Any]] = {
    "workers": WORKERS,
    "dns": {"timeout": "1s", "min_ttl": "1s", "max_ttl": "3s", "negative_ttl": "2s", "failure_ttl": "2s"},
    "retry": {"first": "1s", "factor": 1.5, "cap": "6s", "site_first": "1s", "site_cap": "4s"},
    "shaping": {"default": {"connections": 6, "idle": "2s", "timeouts": {
        "connect": "3s", "greeting": "5s", "ehlo": "5s", "starttls": "5s", "mail": "5s", "rcpt": "5s", "data": "5s",
        "block": "5s", "dot": "5s"}}},
    "store": {"reserve": "0B", "segment_size": "8MB"},
    "events": {"size": "10MB", "keep": 10_000},
}

# What a reload changes; each is set or taken back.
RELOADS: Final[list[dict[str, Any]]] = [
    {"shaping": {"default": {"connections": 2}}},
    {"shaping": {"default": {"connections": 12, "messages_per_connection": 5}}},
    {"shaping": {"domains": {"d1.test": {"connections": 1}, "d2.test": {"tls": "off"}}}},
    {"shaping": {"default": {"idle": "0s"}}},
    {"delivery": {"connections": 20}},
    {"memory": {"bodies": "2MB", "deliveries": 1000, "window": 50}},
    {"retry": {"first": "2s", "cap": "3s"}},
    {"dns": {"cache": 100, "min_ttl": "0s"}},
    {"smtp": {"sessions": 6}},
    {"routes": {"d3.test": "mx"}},
    {"log": "debug"},
]
BROKEN: Final = ["workers: none\n", "hostname: [", "spool: 7\nno_such_option: 1\n", "", "\x00", "- a\n- b\n"]


@dataclass
class Figures:
    """What the processes hold: the largest of each kind."""

    memory: dict[str, int] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
    segments: int = 0

    def beyond(self, base: Figures) -> list[str]:
        """Where this is more than `base` and the bounds allow."""
        found = []
        for role, value in self.memory.items():
            bound = int(base.memory[role] * MEMORY_FACTOR) + MEMORY_MORE
            if value > bound:
                found.append(f"memory of {role}: {value:,} bytes, at first {base.memory[role]:,}, at most {bound:,}")
            for what, now, then, more in (
                    ("descriptors", self.descriptors[role], base.descriptors[role], DESCRIPTORS_MORE),
                    ("threads", self.threads[role], base.threads[role], THREADS_MORE)):
                if now > then + more:
                    found.append(f"{what} of {role}: {now}, at first {then}, {more} more allowed")
        if self.segments > SEGMENTS:
            found.append(f"segment files: {self.segments}, at first {base.segments}, at most {SEGMENTS}")
        return found


class Soak:
    """One run. `problems` has what is wrong at the end."""

    def __init__(self, directory: Path, minutes: float, seed: int, *, sessions: int = SESSIONS,
                 backlog: int = BACKLOG, pause_s: float = 4.0) -> None:
        self.minutes = minutes
        self._pause_s = pause_s
        self._backlog = backlog
        self.problems: list[str] = []
        self.done: Counter[str] = Counter()
        self.result: dict[str, Any] = {}
        self._dice = random.Random(seed)
        self._directory = directory
        self._spool = directory / "mta" / "spool"
        self._spool.mkdir(parents=True)
        self._is_mounted = os.getuid() == 0 and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(self._spool)],
            capture_output=True).returncode == 0
        self._sandbox = Sandbox({"remember": 30_000_000, "log": 0})
        self._account = Account()
        self._gate = Gate()
        pickup = directory / "pickup"
        self.mta = Mta(directory / "mta", self._sandbox.dns, self._sandbox.smtp_port,
                       **CONFIG, pickup=[{"directory": str(pickup)}])
        self._plain = self.mta.config
        self._numbers = Numbers(DOMAINS, seed)
        self._load = [*(Session(self._numbers, self._gate, lambda: self.mta.smtp, seed + number)
                        for number in range(sessions)), Files(self._numbers, self._gate, pickup, seed)]
        self._pickup = pickup
        self._kills = {self._kill_worker: 8, self._kill_workers: 3, self._kill_control: 2, self._kill_supervisor: 2,
                       self._kill_everything: 2}
        self._others = {self._change_receivers: 12, self._reload_something: 4, self._reload_nonsense: 2,
                        self._raise_reserve: 1}
        if self._is_mounted:
            self._others[self._fill_disk] = 3
        self._first = [*self._kills, *self._others]
        self._dice.shuffle(self._first)
        self._next_look = 0.0
        self._next_report = time.monotonic() + REPORT_S
        self._log_seen = 0

    def close(self) -> None:
        """End everything and leave nothing."""
        self._gate.ended.set()
        self._gate.open.set()
        self.mta.kill()
        self._sandbox.stop()
        if self._is_mounted:
            subprocess.run(["umount", "-l", str(self._spool)], check=False, capture_output=True)

    # -- phases ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All phases."""
        storm_s = self.minutes * 60
        self._say(f"spool on {'a tmpfs of its own' if self._is_mounted else 'the disk: no spells of a full disk'}")
        self.mta.start()
        for one in self._load:
            one.start()
        self._gate.open.set()
        self._go_on(min(max(storm_s / 15, 5.0), 60.0))
        self._drain()
        base = self._figures()
        self._say(f"baseline {base}")

        begun = time.monotonic()
        self._gate.open.set()
        while (passed := time.monotonic() - begun) < storm_s:
            self._one_fault(may_kill=passed < storm_s * 2 / 3)
            self._go_on(self._dice.uniform(0.2, self._pause_s))
        self._say("the storm is over")
        for name in DOMAINS:
            self._sandbox.set(name, PERSONALITIES[0])
        self._reload(self._plain)
        self._gate.ended.set()
        for one in self._load:
            one.join(60)
        self._drain()
        deadline = time.monotonic() + 60
        while (beyond := (end := self._figures()).beyond(base)) and time.monotonic() < deadline:
            time.sleep(1)
        self._say(f"at the end {end}")
        self.problems += beyond
        self._look()
        code = self.mta.stop()
        if code != 0:
            self.problems.append(f"the MTA ended with {code}")
        self._finish(base, end)

    def _finish(self, base: Figures, end: Figures) -> None:
        self._account.harvest(self._spool / "shards", everything=True)
        figures = self._account.check(self._numbers, self._sandbox)
        left = [str(path.relative_to(self._pickup)) for path in self._pickup.rglob("*")
                if path.is_file() and not path.name.startswith(".")]
        if left:
            self.problems.append(f"{len(left)} files are left in the spool directory, such as {left[:3]}")
        stats = self._sandbox.stats()
        violations = {kind: found for kind, found in stats["violations"].items() if kind not in MOODS}
        if stats["damaged"] or violations:
            self.problems.append(f"the sandbox complains: {stats['damaged']} damaged, {violations}")
        self._verify()
        self.problems += self._account.problems
        self.result = {**figures, "faults": dict(sorted(self.done.items())), "baseline": base.__dict__,
                       "end": end.__dict__, "problems": len(self.problems)}

    def _verify(self) -> None:
        """Look through the spool, on which no process is."""
        self.done["verify"] += 1
        self.problems += [f"mta spool verify: {problem}" for problem in verify_spool(self._spool)]

    def _drain(self) -> None:
        """No load, and wait until nothing is queued and no connection is open."""
        self._gate.open.clear()

        def is_empty() -> bool:
            self._look()
            return self._queued() == 0 and not self._waiting_files() and self._sandbox.stats()["open"] == 0

        try:
            self.mta.wait_until(is_empty, "an empty queue", DRAIN_S)
        except AssertionError:
            self.problems.append("the queue did not drain: " + self.mta.command("queue", check=False)[:4000])

    def _queued(self) -> int:
        """Recipients in the queue; -1 while not every process answers."""
        try:
            return self.mta.queued()
        except ValueError:
            return -1  # the control process was just killed

    def _waiting_files(self) -> int:
        return sum(1 for path in self._pickup.iterdir() if path.is_file() and not path.name.startswith("."))

    def _go_on(self, seconds: float) -> None:
        """Let the load work, look after it meanwhile."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if now >= self._next_look:
                self._look()
                queued = self._queued()
                if queued > self._backlog:
                    self._gate.open.clear()
                elif queued >= 0:
                    self._gate.open.set()
                if now >= self._next_report:
                    self._next_report = now + REPORT_S
                    self._say(f"{len(self._numbers.accepted):,} accepted, {queued:,} queued, "
                              f"{sum(self.done.values())} faults, {self._figures()}")
                self._next_look = time.monotonic() + 2
            time.sleep(min(0.2, max(until - time.monotonic(), 0)))

    def _look(self) -> None:
        """Read what was said and recorded since."""
        self._account.harvest(self._spool / "shards")
        log = self.mta.log
        for line in log[self._log_seen:]:
            if "bug:" in line or "Traceback" in line or "hangs" in line:
                at = log.index(line)
                self.problems.append("the log says: " + "\n".join(log[at:at + 25]))
        self._log_seen = len(log)

    # -- faults -----------------------------------------------------------------------------------------------------

    def _one_fault(self, may_kill: bool) -> None:
        faults = {**self._kills, **self._others} if may_kill else self._others
        for fault in self._first:  # each of them once, whatever the length of the run
            if fault in faults:
                self._first.remove(fault)
                break
        else:
            fault = self._dice.choices(list(faults), list(faults.values()))[0]
        self.done[fault.__name__.strip("_").replace("_", " ")] += 1
        fault()
        self._revive()

    def _revive(self) -> None:
        assert self.mta.process is not None
        code = self.mta.process.poll()
        if code is not None:
            self._say(f"the MTA ended by itself with {code}: {self.mta.log[-5:]}")
            self.done["start after an end by itself"] += 1
            self.mta.kill()
            self.mta.start()

    def _kill_worker(self) -> None:
        workers = self.mta.children()["worker"]
        if workers:
            _kill(self._dice.choice(workers))

    def _kill_workers(self) -> None:
        for pid in self.mta.children()["worker"]:
            _kill(pid)

    def _kill_control(self) -> None:
        for pid in self.mta.children()["server"]:
            _kill(pid)

    def _kill_supervisor(self) -> None:
        assert self.mta.process is not None
        self.mta.process.kill()
        self.mta.process.wait()
        self.mta.start()

    def _kill_everything(self) -> None:
        self.mta.kill()
        if self._dice.random() < 0.5:
            self._verify()
        self.mta.start()

    def _change_receivers(self) -> None:
        for name in self._dice.sample(DOMAINS, self._dice.randint(1, 8)):
            calm = self._dice.random() < 0.4
            self._sandbox.set(name, PERSONALITIES[0] if calm else self._dice.choice(PERSONALITIES))

    def _reload_something(self) -> None:
        config = self._plain
        for change in self._dice.sample(RELOADS, self._dice.randint(0, 3)):
            config = _merged(config, change)
        self._reload(config)

    def _reload(self, config: dict[str, Any]) -> None:
        self.mta.config = config
        said = self._hang_up("reload:")
        if any("has errors" in line for line in said):
            self.problems.append(f"a reload was refused: {said}")

    def _reload_nonsense(self) -> None:
        path = self.mta.write_config()
        text = path.read_text()
        nonsense = self._dice.choice(BROKEN)
        path.write_text(nonsense if not nonsense or self._dice.random() < 0.5 else text + nonsense)
        self._hang_up("the old one stays in force", write=False)
        self.mta.write_config()

    def _hang_up(self, answer: str, write: bool = True) -> list[str]:
        """SIGHUP, and wait until the log tells what came of it. What the log said meanwhile."""
        if write:
            self.mta.write_config()
        assert self.mta.process is not None
        log = self.mta.log
        seen = len(log)
        self.mta.process.send_signal(signal.SIGHUP)
        self.mta.wait_until(lambda: any(answer in line for line in log[seen:]) or self.mta.process.poll() is not None,
                            f"an answer to SIGHUP with {answer!r}")
        return log[seen:]

    def _raise_reserve(self) -> None:
        """No room, says the option; as good as a full disk for who may not mount one."""
        before = self.mta.config
        self._reload(_merged(before, {"store": {"reserve": "900TB"}}))
        self._go_on(self._dice.uniform(0.5, 4.0))
        self._reload(before)

    def _fill_disk(self) -> None:
        ballast = self._spool / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 20))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                for _ in range(self._dice.randint(1, 3)):
                    self._go_on(self._dice.uniform(0.5, 3.0))
                    if self._dice.random() < 0.2:
                        self.done["kill worker on a full disk"] += 1
                        self._kill_worker()
        finally:
            ballast.unlink(missing_ok=True)

    # -- looking ----------------------------------------------------------------------------------------------------

    def _figures(self) -> Figures:
        assert self.mta.process is not None
        figures = Figures()
        for role, pids in {**self.mta.children(), "supervisor": [self.mta.process.pid]}.items():
            for pid in pids:
                proc = Path("/proc", str(pid))
                try:
                    status = (proc / "status").read_text()
                    descriptors = len(os.listdir(proc / "fd"))
                except OSError:
                    continue  # it was just killed
                found = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+)", status)}
                if "RssAnon" not in found:
                    continue  # it is about to be reaped
                # Not what is mapped of files: pages of the index are the kernel's to keep or to drop.
                for values, value in ((figures.memory, found["RssAnon"] * 1024), (figures.descriptors, descriptors),
                                      (figures.threads, found["Threads"])):
                    values[role] = max(values.get(role, 0), value)
        figures.segments = sum(1 for path in self._spool.glob("shards/*/journal/*") if path.is_file())
        return figures

    @staticmethod
    def _say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(config)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def main() -> int:
    """Run it as the command line says; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the storm (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="repeats the decisions of a run (default: a new one)")
    options = parser.parse_args()
    seed = options.seed or random.randrange(1, 1 << 30)
    directory = Path(tempfile.mkdtemp(prefix="mta-soak-"))
    soak = Soak(directory, options.minutes, seed)
    print(f"seed {seed}, {options.minutes} minutes", flush=True)
    try:
        soak.run()
    finally:
        soak.close()
        (directory.parent / f"{directory.name}.log").write_text("\n".join(soak.mta.log))
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(soak.result, indent=1))
    for problem in soak.problems[:50]:
        print(f"PROBLEM {problem}")
    print(f"{'FAILED' if soak.problems else 'passed'}: {len(soak.problems)} problems; the log of the MTA is "
          f"{directory}.log")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
