"""bench/goals.py and bench/figures.py: what is made of a result."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import figures, goals
from bench.backlog import Row
from bench.compare import main as compare
from bench.connections import Connections
from bench.latency import Latency
from bench.measure import Run
from bench.programs import ROOT
from bench.report import summarize


def result() -> dict[str, Any]:
    """A result with two MTAs and every part."""
    runs = [Run("S1", "ours", 1, 10, rate=4200.0, cpu_ms=0.2, syncs_per_message=0.05, arrived=10),
            Run("S1", "postfix", 1, 10, rate=600.0, cpu_ms=2.0, arrived=10)]
    rows = [Row(0, 1, lives=[Run("S2", "ours", 1, 10, rate=4000.0, cpu_ms=0.20)]),
            Row(1_000_000, 50, start_s=1.5, listing_s=1.25, resting_bytes=40_000_000,
                lives=[Run("S2", "ours", 1, 10, rate=3900.0, cpu_ms=0.21, peak_anonymous=60_000_000)])]
    connections = Connections(10_000, opened=10_000, open_when_measured=10_000, resting_bytes=24_000_000,
                              open_bytes=324_000_000, bytes_each=30_000.0, lag_p99_ms=60.0, lag_max_ms=90.0)
    machine = {"cores": 2, "processor": "one", "memory": 2**34, "kernel": "6", "python": "3.11", "file_system": "ext4",
               "sync_ms": 0.2, "load": 0.0}
    figures: dict[str, Any] = json.loads(json.dumps({
        "time": "2026-01-05T11:00:00+00:00", "machine": machine, "versions": {"ours": "1"}, "skipped": {"haraka": "no"},
        "load": "src and sink", "commands": ["python -m bench.compare"], "scale": 1.0,
        "runs": [asdict(run) for run in runs], "summary": [asdict(line) for line in summarize(runs)],
        "rows": [asdict(row) for row in rows], "connections": asdict(connections),
        "latency": [asdict(Latency("ours", 1, 0.0, 0.3, 0.5, 0.2, 1.5))],
    }))
    return figures


def test_goals_are_judged_by_what_was_measured() -> None:
    """Reached, missed, or not measured: a rival that did not run leaves the goal open."""
    found = {(goal.scenario, goal.what): goal for goal in goals.goals(result())}
    rate = found["S1", "rate, times that of Postfix"]
    assert (rate.measured, rate.holds) == (7.0, True)
    assert found["S1", "rate, times that of Haraka"].holds is None
    assert found["S1", "CPU per recipient"].holds is True
    assert found["S3", "CPU per recipient"].holds is None
    assert found["S7", "1,000,000 queued: start to ready"].holds is True
    assert found["S7", "1,000,000 queued: `mta queue`"].holds is False
    assert found["S7", "1,000,000 queued: own memory of a worker"].measured == 60.0
    assert round(found["S7", "CPU per message at any length, times that with an empty queue"].measured or 0, 3) == 1.05
    assert found["S10", "own memory for each"].holds is True
    assert found["S10", "event loop late, p99"].holds is False
    assert found["L1", "one at a time: final dot to 250, times one fdatasync"].holds is True
    assert all(goal.holds is None for goal in goals.goals({}))


def test_a_document_gets_its_tables(tmp_path: Path) -> None:
    """Only what is between the marks changes, and again with the next result; an unknown name is an error."""
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- figures: queue -->\nold\n<!-- end -->\nafter\n")
    source = tmp_path / "result.json"
    source.write_text(json.dumps(result()))
    for _ in range(2):
        assert figures.main([str(source), "--docs", str(document)]) == 0
        text = document.read_text()
        assert text.startswith("before\n<!-- figures: queue -->\n\n| queued |")
        assert text.endswith("|\n\n<!-- end -->\nafter\n")
        assert "old" not in text
        assert "| 1,000,000 | 50 | 1.50 |" in text
    document.write_text("<!-- figures: nothing -->\n<!-- end -->\n")
    assert figures.main([str(source), "--docs", str(document)]) == 2


def test_the_page_about_performance_has_a_place_for_every_table() -> None:
    """All tables are in it, and all names that it uses exist."""
    page = (ROOT / "docs" / "performance.md").read_text()
    names = ["machine", "plots", "doors", "flooded", *figures.SECTIONS]
    for name in names:
        assert f"<!-- figures: {name} -->" in page
    assert "| S1 | ours | 4,200 |" in figures.rewritten(page, result())
    nothing = figures.rewritten(page, {}, tables=names)
    assert nothing.count("Not measured.") == len(names) - 2  # goals are always a table, and plots are drawn or not


def test_a_result_changes_only_its_own_tables() -> None:
    """One of sessions leaves those of the comparison as they are; with names, these alone change."""
    page = "<!-- figures: doors -->\nold\n<!-- end --><!-- figures: queue -->\nqueues\n<!-- end -->"
    machine = result()["machine"]
    doors = {"doors": {"time": "2026-01-05T11:00:00+00:00", "machine": machine, "version": "1", "workers": "1"}}
    assert "queues" in figures.rewritten(page, doors)
    assert "old" not in figures.rewritten(page, doors)
    both = figures.rewritten(page, doors | result())
    assert "old" not in both
    assert "queues" not in both
    assert "queues" in figures.rewritten(page, doors | result(), tables=["doors"])
    with pytest.raises(figures.FiguresError, match="no result"):
        figures.sections_of({})


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.filterwarnings("default")
def test_plots_are_drawn(tmp_path: Path) -> None:
    """PNG files of rates, costs and the queue."""
    drawn = figures.plots(result(), tmp_path)
    assert [path.name for path in drawn] == ["rates.png", "cpu.png", "queue.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_parts_are_kept_from_one_command_to_the_next(tmp_path: Path) -> None:
    """A comparison writes each part into the result and leaves the others in it."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"latency": [], "connections": None, "commands": ["first"]}))
    words = ["--parts", "queue", "--queued", "0", "--domains", "1", "--runs", "1", "--scale", "0.01", "--workers", "1",
             "--against", "exim", "--directory", str(tmp_path), "--json", str(path)]
    assert compare(words) == 0
    written = json.loads(path.read_text())
    assert written["rows"][0]["lives"][0]["arrived"] == 200
    assert (written["latency"], written["connections"]) == ([], None)
    assert written["commands"][0] == "first"
    assert str(tmp_path) not in written["commands"][1]
