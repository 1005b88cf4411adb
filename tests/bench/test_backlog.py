"""bench/backlog.py: a long queue, made short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.backlog import main, make_rows


@pytest.mark.parametrize("way", [(), ("--by-smtp",)])
def test_a_backlog_is_kept_and_lived_with(tmp_path: Path, way: tuple[str, ...]) -> None:
    """Nothing of the backlog is lost by a stop, a kill and live mail, and every column has its figure.

    However the backlog was made: by the store itself, or injected.
    """
    result = tmp_path / "result.json"
    words = ["--queued", "100", "--domains", "10", "--messages", "100", "--workers", "2", "--directory", str(tmp_path)]
    assert main([*words, *way, "--json", str(result)]) == 0
    row, = json.loads(result.read_text())["rows"]
    assert row["problems"] == []
    live, = row["lives"]
    assert (live["arrived"], live["queued"]) == (100, 0)
    assert 0.0 < row["start_s"] < 60.0
    assert 0.0 < row["recovery_s"] < 60.0
    assert 0.0 < row["listing_s"] < 60.0
    assert row["resting_bytes"] > 5_000_000


@pytest.mark.parametrize("lengths", ["", "1,,2", "many", "-1"])
def test_lengths_are_numbers(lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but numbers between commas is a usage error."""
    with pytest.raises(SystemExit) as ended:
        main([f"--queued={lengths}"])
    assert ended.value.code == 2
    assert "expected numbers" in capsys.readouterr().err


def test_rows_make_sense() -> None:
    """No row has more domains than messages, and the empty queue comes once."""
    assert [(row.queued, row.domains) for row in make_rows([0, 10, 1000], [1, 100])] == [
        (0, 1), (10, 1), (1000, 1), (1000, 100)]
