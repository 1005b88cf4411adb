"""bench/pickup.py: many files, made few."""

from __future__ import annotations

import json
from pathlib import Path

from bench.pickup import KINDS, main


def test_every_kind_of_file_flows(tmp_path: Path) -> None:
    """Nothing is lost or comes twice, and every column has its figure."""
    result = tmp_path / "result.json"
    words = ["--messages", "200", "--size", "600", "--workers", "2", "--directory", str(tmp_path)]
    assert main([*words, "--json", str(result)]) == 0
    rows = json.loads(result.read_text())["rows"]
    assert [row["kind"] for row in rows] == list(KINDS)
    for row in rows:
        assert row["problems"] == []
        assert row["bytes"] > 200 * 500
        assert 0.0 < row["taken_s"] < 60.0
        assert row["arrived_s"] > 0.0
        assert row["cpu_ms"] > 0.0
        assert row["anonymous"] > 5_000_000
