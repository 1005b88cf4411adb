"""bench/throughput.py: its command line, what it checks, what it adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.candidate import Setup
from bench.measure import Run, check
from bench.ours import configuration, place
from bench.processes import MemoryWatch, TreeAccount, find
from bench.profiler import summary
from bench.programs import ROOT
from bench.report import comparisons, summarize, table
from bench.scenarios import SCENARIOS
from bench.throughput import main
from mta.config.loader import loads

PROGRAM = str(ROOT / "bench" / "throughput.py")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=60, cwd="/")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--scenario", "S0"], "no scenario S0: there are S1, S2"),
    (["--runs", "0"], "expected a number above 0, not '0'"),
    (["--workers", "many"], "expected a number above 0, not 'many'"),
    (["--set", "memory.bodies"], "expected OPTION=VALUE, not 'memory.bodies'"),
    (["--set", ".x=1"], "expected OPTION=VALUE, not '.x=1'"),
    (["--sink", "/bin/true"], "--source and --sink belong together"),
    (["--source", "/nowhere/source"], "/nowhere/source is not an executable file"),
    (["--directory", "/nowhere"], "--directory: /nowhere is no directory"),
    (["--not-ours"], "nothing to measure"),
    (["--against", "sendmail"], "invalid choice: 'sendmail'"),
])
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line ends with exit code 2 and one message that says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_load_alone(tmp_path: Path) -> None:
    """The chain source, sink, table and JSON, without an MTA: all arrive once, exit code 0."""
    result = tmp_path / "result.json"
    done = bench("--scenario", "s2", "--not-ours", "--against", "direct", "--messages", "200", "--runs", "1",
                 "--directory", str(tmp_path), "--json", str(result))
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("S2"))
    assert row.split()[1:3] == ["direct", "1"]
    assert row.endswith("yes")
    written = json.loads(result.read_text())
    assert [run["arrived"] for run in written["runs"]] == [200]
    assert written["machine"]["sync_ms"] > 0
    assert list(tmp_path.iterdir()) == [result]


def test_our_mta_under_load(tmp_path: Path) -> None:
    """The whole chain with a real MTA: every message arrives once, and its processes are found and measured."""
    result = tmp_path / "result.json"
    done = bench("--scenario", "S2", "--messages", "200", "--runs", "1", "--workers", "1", "--directory", str(tmp_path),
                 "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    run, = json.loads(result.read_text())["runs"]
    assert (run["arrived"], run["duplicates"], run["queued"], run["problems"]) == (200, 0, 0, [])
    assert 0.0 < run["cpu_s"] < 30.0
    assert run["largest"] == "worker"
    assert run["peak"] > run["peak_anonymous"] > 5_000_000
    assert run["together"] > run["peak_anonymous"]
    assert run["syncs_why_not"] or run["syncs"] > 0


SENT = {"accepted": 20_000.0, "errors": 0.0}


@pytest.mark.parametrize(("changes", "sent", "problem"), [
    ({}, {}, None),
    ({"arrived": 19_999}, {}, "19999 of 20000 recipients arrived"),
    ({"duplicates": 1}, {}, "1 recipients arrived twice"),
    ({"queued": 1}, {}, "1 in the queue at the end instead of 0"),
    ({}, {"errors": 2.0}, "2 errors while injecting: said"),
    ({"accepted": 19_999}, {}, "accepted 19999 of 20000 messages"),
])
def test_nothing_lost_nothing_twice(changes: dict[str, Any], sent: dict[str, float], problem: str | None) -> None:
    """A run is sound only if every recipient arrived exactly once and the queue is empty."""
    run = replace(Run("S2", "ours", 1, 20_000, accepted=20_000, arrived=20_000), **changes)
    check(SCENARIOS["S2"], run, SENT | sent, ["said"])
    assert run.problems == ([] if problem is None else [problem])


def test_receivers_down_means_all_in_the_queue() -> None:
    """With receivers down every accepted message has to be in the queue at the end."""
    run = Run("S6", "ours", 1, 20_000, accepted=20_000, queued=20_000)
    check(SCENARIOS["S6"], run, SENT, [])
    assert run.problems == []
    run.queued = 19_999
    check(SCENARIOS["S6"], run, SENT, [])
    assert run.problems == ["19999 in the queue at the end instead of 20000"]


def test_medians_and_ratios() -> None:
    """The table shows medians, the least and the most; one bad run marks the line."""
    runs = [Run("S1", "ours", number, 10, rate=rate, cpu_ms=0.2) for number, rate in enumerate((900.0, 4000.0, 5000.0))]
    runs += [Run("S1", "postfix", 0, 10, rate=500.0, cpu_ms=2.0, problems=["lost"])]
    ours, postfix = summarize(runs)
    assert (ours.rate, ours.rate_least, ours.rate_most) == (4000.0, 900.0, 5000.0)
    assert (ours.arrived_once, postfix.arrived_once) == (True, False)
    assert table([ours, postfix])[1].split()[:5] == ["S1", "ours", "3", "4,000", "900-5,000"]
    assert comparisons([ours, postfix], "ours") == [
        "S1: ours moves 8.00 times what postfix does, with 0.100 of its CPU time per recipient"]


def test_the_configuration_is_one(tmp_path: Path) -> None:
    """What the bench configures is accepted by our own loader, with a scenario's connections and settings in place."""
    setup = Setup(tmp_path, tmp_path / "run", TreeAccount(), ("127.0.0.1", 5353), 2600, workers="3", connections=10,
                  settings={"memory.bodies": "9MB"})
    config = loads(yaml.safe_dump(configuration(setup)), "bench")
    assert config.workers == 3
    assert config.shaping.effective().connections == 10
    assert config.memory.bodies == 9_000_000
    assert config.delivery.allow_loopback


def test_an_option_below_a_value_is_refused() -> None:
    """A dotted name cannot go through something that is no section."""
    with pytest.raises(ValueError, match="workers is no section"):
        place({"workers": 2}, "workers.number", 1)


BURN = """
import os, sys, time
def burn():
    while time.process_time() < 0.3: pass
child = os.fork()
if not child:
    burn()
    os._exit(0)
os.waitpid(child, 0)
burn()
held = b"x" * 30_000_000
print("burnt", flush=True)
sys.stdin.read()
"""


def test_a_process_tree_counts_its_dead(tmp_path: Path) -> None:
    """CPU time of a reaped child stays in the account, and the peak of memory is that of the largest process."""
    account = TreeAccount()
    process = subprocess.Popen(account.wrap([sys.executable, "-c", BURN]), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    account.root(process.pid)
    with process, MemoryWatch(account) as memory:
        assert process.stdout is not None
        assert process.stdout.readline() == "burnt\n"
        assert 0.55 < account.cpu_s() < 20.0
        memory.look()
        assert account.pids() == [process.pid]
        assert find(account, memory.worst().role) == process.pid
        assert find(account, "worker") is None
    assert memory.worst().resident > 30_000_000
    assert memory.worst().anonymous > 30_000_000
    assert account.pids() == []


def test_a_profile_names_functions_once() -> None:
    """Own time is the last frame's; a recursive function counts once per stack; line numbers do not divide it.

    Each thread is a table of its own, the busiest first.
    """
    lines = summary("thread (8);w (c.py:1) 2\n"
                    "thread (7);main (a.py:1);f (a.py:2);f (a.py:3) 3\nthread (7);main (a.py:1);g (b.py:9) 1\n")
    assert lines[0] == "thread (7): 4 samples"
    assert [line.split() for line in lines[2:4]] == [
        ["75.0", "75.0", "f", "(a.py)"], ["25.0", "25.0", "g", "(b.py)"]]
    assert lines[4] == "thread (8): 2 samples"
