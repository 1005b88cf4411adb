"""bench/crowd.py: a crowd, made small; and what its load programs tell of times."""

from __future__ import annotations

import json
from pathlib import Path

import dns.message
import pytest

from bench import crowd
from bench.nameserver import Zones
from tests.bench.helpers import run_source, running_sink


@pytest.mark.parametrize("kind", ["nothing", "sweep"])
def test_a_small_crowd(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backlog, and with one through which a sweep goes: everything arrives once, every line has its figure,
    and what should overtake the backlog does."""
    monkeypatch.setattr(crowd, "ROUNDS", 1)
    monkeypatch.setattr(crowd, "FILLED_S", 2.0)
    result = tmp_path / "result.json"
    words = ["--queued", "2000", "--domains", "30", "--seconds", "2", "--connections", "10", "--workers", "1",
             "--only", kind, "--directory", str(tmp_path), "--json", str(result)]
    assert crowd.main(words) == 0
    run, = json.loads(result.read_text())["runs"]
    assert run["problems"] == []
    assert [one["messages"] for one in run["classes"]] == [30, 60, 6]
    assert all(one["max_ms"] >= one["p99_ms"] >= one["p50_ms"] for one in run["classes"])
    assert run["classes"][0]["max_ms"] > 0
    assert run["commands"].keys() == {"queue", "explain", "pause", "resume"}
    assert run["worker_bytes"] > 5_000_000
    assert run["cpu_ms"] > 0
    if kind == "nothing":
        assert (run["from_backlog"], run["delivered"]) == (0, 96)
    else:
        assert run["from_backlog"] > 0
        # One on each connection, and a few for turns and leases that change hands.
        assert run["classes"][2]["overtaken"] <= 2 * 10
        assert (run["deleted"] > 0) == (kind == "sweep")


def test_a_source_keeps_its_pace_and_tells_when(tmp_path: Path) -> None:
    """With a pace: numbers from the first one on, header fields as asked for, and the times of source and sink are of
    one clock, by number, each recipient once."""
    accepted, arrived = tmp_path / "accepted.json", tmp_path / "arrived.json"
    with running_sink(tmp_path, "-n", "30", "-c", str(arrived)) as (sink, port):
        source = run_source(tmp_path, port, "-m", "30", "-s", "3", "-R", "100", "-N", "5000", "-H", "X-Tenant: a",
                            "-c", str(accepted))
        sink.wait(30)
    took_at = dict(json.loads(accepted.read_text()))
    came_at = dict(json.loads(arrived.read_text()))
    assert took_at.keys() == came_at.keys() == set(range(5000, 5030))
    began_s = source.result()["start"]
    assert all(took_at[number] >= began_s + (number - 5000) / 100 for number in took_at)
    assert all(came_at[number] <= took_at[number] for number in took_at)


def test_domains_that_share_a_host() -> None:
    """Each has the one host of the zone as its MX, which has one address; others have hosts of their own."""
    zones = Zones({"slow": ["127.0.0.8"], "test": ["127.0.0.10"]}, shared=["slow"])

    def ask(name: str, kind: str) -> list[str]:
        answer = zones.answer(dns.message.make_query(name, kind).to_wire())
        assert answer is not None
        return [str(record) for rrset in dns.message.from_wire(answer).answer for record in rrset]

    assert ask("d1.slow", "MX") == ask("d20.slow", "MX") == ["10 mx.slow."]
    assert ask("mx.slow", "A") == ["127.0.0.8"]
    assert ask("mx.slow", "MX") == []
    assert ask("d3.test", "MX") == ["10 mx.d3.test."]
