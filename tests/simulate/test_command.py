"""`mta simulate`: the same again by the same seed, in other processes too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "conf" / "sandbox.yaml"


def simulate(tmp_path: Path, *words: str, hash_seed: str = "1") -> subprocess.CompletedProcess[str]:
    """Run the command."""
    config = tmp_path / "mta.yaml"
    config.write_text("hostname: mta.test\n")
    return subprocess.run(
        [sys.executable, "-m", "mta", "simulate", "-c", str(config), "--internet", str(SANDBOX), *words],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed})


def test_two_runs_give_the_same_numbers(tmp_path: Path) -> None:
    """Byte for byte, though sets and dicts of the two processes have another order; another seed gives others."""
    words = ("--messages", "2_000", "--hours", "3", "--json")
    first = simulate(tmp_path, *words, hash_seed="1")
    again = simulate(tmp_path, *words, hash_seed="2")
    other = simulate(tmp_path, *words, "--seed", "2")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout
    result = json.loads(first.stdout)
    assert result["recipients"] == 2000
    assert result["recipients"] == result["delivered"] + result["bounced"] + result["expired"] + result["left"]


def test_it_tells_what_held_the_mail(tmp_path: Path) -> None:
    """For people: when, what, where, and by what."""
    run = simulate(tmp_path, "--messages", "500", "--hours", "1", "--sites", "5")
    assert run.returncode == 0, run.stderr
    assert "of 500 recipients delivered" in run.stdout
    assert "delivered: 50 % after" in run.stdout
    assert "the site failed" in run.stdout
    assert "more sites" in run.stdout


def test_wrong_use_is_told(tmp_path: Path) -> None:
    """Without mail there is nothing to simulate; faults of a campaign come with their place."""
    assert "--messages N, or --campaign FILE" in simulate(tmp_path).stderr
    campaign = tmp_path / "campaign.yaml"
    campaign.write_text("parts: [{over: soon}]\n")
    run = simulate(tmp_path, "--campaign", str(campaign))
    assert run.returncode == 78
    assert "campaign.yaml:1:" in run.stderr
