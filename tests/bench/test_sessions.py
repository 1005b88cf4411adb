"""bench/sessions.py and bench/floods.py: small runs, for what is counted and not for how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

from bench import alone, figures, floods, sessions
from bench.scenarios import Scenario


def test_sessions_in_clear_and_in_tls(tmp_path: Path) -> None:
    """Every message is accepted by each kind of session, of slow clients and in resumed TLS sessions, too, and the
    tables are made."""
    path = tmp_path / "sessions.json"
    words = ["--only", "paced,connect,batch", "--rounds", "1", "--scale", "0.001", "--workers", "1",
             "--directory", str(tmp_path), "--json", str(path)]
    assert sessions.main(words) == 0
    result = json.loads(path.read_text())
    assert [(run["case"], run["kind"], run["accepted"]) for run in result["sessions"]] == [
        (case, kind, 500) for case in ("paced", "connect") for kind in sessions.CASES[case].kinds]
    assert sessions.added_ms(result["sessions"], "paced", sessions.CLEAR) is None
    assert len(figures.SECTIONS["sessions"][1](result)) == 1 + 6
    assert len(figures.SECTIONS["files"][1](result)) == 1 + 1
    assert "wanted: at most 0.06 ms" in figures.section(result, "doors")


def test_one_session_is_three_in_turn(tmp_path: Path) -> None:
    """In clear, in clear by a slow client, in TLS: each has its messages accepted, all arrive, and each has a cost."""
    path = tmp_path / "sessions.json"
    words = ["--only", "through-1", "--rounds", "1", "--scale", "0.001", "--directory", str(tmp_path),
             "--json", str(path)]
    assert sessions.main(words) == 0
    result = json.loads(path.read_text())
    assert [(run["case"], run["kind"], run["accepted"]) for run in result["sessions"]] == [
        ("through-1", kind, 500 // alone.TURN * alone.TURN) for kind in (sessions.CLEAR, sessions.SLOW, sessions.TLS)]
    assert all(run["cpu_ms"] > 0 and run["source_cpu_ms"] > 0 for run in result["sessions"])
    assert "(`through-1`); wanted" in figures.section(result, "doors")


def test_what_is_lost_or_kept_in_turns_is_told() -> None:
    """A message that is missing in the queue is a problem of the run."""
    scenario = Scenario("kept-1", "", 180, receivers_up=False)
    assert alone.missing(scenario, 180, None) == []
    assert alone.missing(scenario, 179, None) == ["179 in the queue at the end instead of 180"]


def test_what_tls_adds_to_one_session_is_over_a_client_as_slow() -> None:
    """Pauses of a client are not TLS; and each turn is compared with the one that was beside it."""
    runs = [{"case": "kept-1", "kind": kind, "number": 1, "cpu_ms": 0.0, "turns_ms": turns, "problems": []}
            for kind, turns in ((sessions.CLEAR, [0.3, 0.3, 0.3]), (sessions.SLOW, [0.35, 0.95, 0.34]),
                                (sessions.TLS, [0.4, 1.0, 0.40]))]
    assert [sessions.added_ms(runs, "kept-1", kind) for kind in (sessions.CLEAR, sessions.SLOW)] == [None, None]
    assert round(sessions.added_ms(runs, "kept-1", sessions.TLS) or 0, 6) == 0.05


def test_what_tls_adds_is_the_median_of_the_rounds() -> None:
    """Each round's difference counts, not the difference of medians; a round with a problem does not."""
    runs = [{"case": "kept-20", "kind": kind, "number": number, "cpu_ms": cost, "problems": problems}
            for kind, costs in ((sessions.CLEAR, (0.1, 0.3, 0.2, 0.2)), (sessions.TLS, (0.15, 0.32, 0.29, 9.0)))
            for number, (cost, problems) in enumerate(zip(costs, ([], [], [], ["lost"]), strict=True))]
    added = sessions.added_ms(runs, "kept-20", sessions.TLS)
    assert added is not None
    assert round(added, 6) == 0.05


def test_a_crowd_and_a_flood(tmp_path: Path) -> None:
    """All mail arrives beside idle clients, and beside one that guesses passwords, of which the events tell the sum."""
    path = tmp_path / "floods.json"
    words = ["--only", "crowd,login", "--idle", "200", "--busy", "100", "--seconds", "2", "--rate", "50",
             "--flood-rate", "100", "--workers", "1", "--directory", str(tmp_path), "--json", str(path)]
    assert floods.main(words) == 0
    crowd, login = json.loads(path.read_text())["floods"]
    assert crowd["idle"] == 200
    assert login["strangers"]["told 421"] > 0
    assert login["told"] >= login["strangers"]["told 421"]
    assert login["events"] < 10
    assert len(floods.floods_table(json.loads(path.read_text()))) == 1 + 2
