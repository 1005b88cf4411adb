"""`python -m tests.fuzz [TARGET | all] [--cases N] [--seconds S] [--seed N] [--plain] [--keep]`: see README.md."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import corpus, plain
from tests.fuzz.targets import TARGETS, Target


class Ran(NamedTuple):
    """What a run came to. `edges` and `features` are libFuzzer's words for what was reached; 0 without it."""

    cases: int
    seconds: float
    edges: int = 0
    features: int = 0
    finding: bytes | None = None
    error: str = ""


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzz the parsers and machines.")
    parser.add_argument("target", nargs="?", choices=["all", *TARGETS], help="without one: list them")
    parser.add_argument("--cases", type=int, default=100_000, help="inputs for each target (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=86_400, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default: %(default)s)")
    parser.add_argument("--plain", action="store_true", help="without atheris: faster, not guided by what is reached")
    parser.add_argument("--keep", action="store_true", help="put into the repository what is worth it")
    options = parser.parse_args()
    if options.target is None:
        print(*TARGETS)
        return 0
    logging.disable()
    unguided = options.plain or importlib.util.find_spec("atheris") is None
    if unguided and not options.plain:
        print("atheris is not installed: the inputs are not guided by what they reach", file=sys.stderr)
    failed = False
    for name in TARGETS if options.target == "all" else [options.target]:
        target = TARGETS[name]
        ran = (without_guide if unguided else guided)(target, options)
        print(f"{name:<11} {ran.cases:>9} cases {ran.seconds:>7.1f} s {ran.edges:>6} edges {ran.features:>6} features",
              flush=True)
        if ran.finding is not None:
            failed = True
            print(f"{ran.error}\n{name}: found with\n{corpus.line_of(ran.finding)}", flush=True)
            if options.keep:
                what = re.search(r"^[\w.]*(?:Error|Exception|Iteration).*", ran.error, re.MULTILINE)
                corpus.note_finding(name, ran.finding, what[0] if what else "time or memory")
    return failed


def without_guide(target: Target, options: argparse.Namespace) -> Ran:
    """Here, and with changes at random."""
    begun = time.monotonic()
    try:
        cases = plain.run(target, options.cases, options.seconds, options.seed)
    except plain.Finding as finding:
        error = "".join(traceback.format_exception(finding))
        return Ran(0, time.monotonic() - begun, finding=finding.data, error=error)
    return Ran(cases, time.monotonic() - begun)


def guided(target: Target, options: argparse.Namespace) -> Ran:
    """In a process of its own, by atheris."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        place = Path(directory)
        inputs = place / "inputs"
        inputs.mkdir()
        for number, data in enumerate([*target.seeds, *corpus.kept(target.name)]):
            (inputs / f"{number:06d}").write_bytes(data)
        words = place / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), "ascii")
        begun = time.monotonic()
        dictionary = [f"-dict={words}"] if target.words else []
        said = _atheris(
            target.name, f"-runs={options.cases}", f"-max_total_time={max(1, int(options.seconds))}",
            f"-seed={options.seed}", f"-max_len={target.longest}", "-timeout=60", "-rss_limit_mb=2048",
            f"-artifact_prefix={place}/found-", "-print_final_stats=1", *dictionary, str(inputs),
        )
        seconds = time.monotonic() - begun
        reached = re.findall(r"cov: (\d+) ft: (\d+)", said) or [(0, 0)]
        cases = re.findall(r"(?:number_of_executed_units:\s+|^#)(\d+)", said, re.MULTILINE) or [0]
        edges, features = map(int, reached[-1])
        found = next(iter(place.glob("found-*")), None)
        if options.keep:
            best = place / "best"
            best.mkdir()
            # What goes through all the code, without regard to how often.
            _atheris(target.name, "-merge=1", "-use_counters=0", f"-max_len={target.longest}", str(best), str(inputs))
            corpus.keep(target.name, [path.read_bytes() for path in best.iterdir()])
        error = said.partition("Uncaught Python exception: ===\n")[2].partition("\n==")[0] or said[-2000:]
        return Ran(int(cases[-1]), seconds, edges, features, None if found is None else found.read_bytes(), error)


def _atheris(name: str, *options: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.fuzz.guided", name, *options]
    done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, env=environment, check=False)
    return done.stdout.decode("utf-8", "replace")


def _escaped(word: bytes) -> str:
    return "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in word)


if __name__ == "__main__":
    sys.exit(main())
