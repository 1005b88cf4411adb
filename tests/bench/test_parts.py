"""bench/fill.py, bench/latency.py, bench/connections.py: small runs with a real MTA; slower syncs; what others use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import connections, latency, slowdisk
from bench.candidates import CANDIDATES, OTHERS
from bench.fill import fill
from bench.others import Others
from mta.config.schema import Config
from mta.queue.store import Store
from tests.bench.helpers import run_source, running_sink


def test_a_filled_spool_is_whole(tmp_path: Path) -> None:
    """Every message is in one of the shards, with its events; an odd one goes to the first."""
    fill(tmp_path / "spool", 1001, 7, 2, size=600, spread_s=100)
    counts = []
    for shard in (0, 1):
        directory = tmp_path / "spool" / "shards" / f"{shard:03d}"
        store = Store.open(directory, Config(hostname="mta.bench.test"), shard, lambda: None,
                           clock_us=lambda: time.time_ns() // 1000)
        counts.append(store.counts())
        store.close()
        events = b"".join(path.read_bytes() for path in sorted((directory / "events").iterdir()))
        assert events.count(b'"received"') == events.count(b'"deferred"') == counts[-1].messages
    assert [(count.messages, count.recipients) for count in counts] == [(501, 501), (500, 500)]


def test_one_at_a_time(tmp_path: Path) -> None:
    """L1: every message arrives, and both times are known."""
    result = tmp_path / "result.json"
    words = ["--messages", "120", "--runs", "1", "--workers", "1", "--directory", str(tmp_path), "--json", str(result)]
    assert latency.main(words) == 0
    found, = json.loads(result.read_text())["latency"]
    assert found["problems"] == []
    assert found["dot_p99_ms"] >= found["dot_p50_ms"] > 0
    assert found["ratio"] == pytest.approx(found["dot_p50_ms"] / found["sync_p50_ms"], abs=0.01)


def test_open_connections_are_counted_and_weighed(tmp_path: Path) -> None:
    """S10, small: all are open at once, each takes memory, and the event loop's lateness is known."""
    result = tmp_path / "result.json"
    words = ["--connections", "100", "--hold", "5", "--directory", str(tmp_path), "--json", str(result)]
    assert connections.main(words) == 0
    found = json.loads(result.read_text())["connections"]
    assert found["opened"] >= 100
    assert found["bytes_each"] > 1000
    assert found["lag_max_ms"] >= found["lag_p99_ms"] > 0
    assert found["run"]["arrived"] == 300


def test_only_the_reply_to_content_is_late(tmp_path: Path) -> None:
    """-W delays what follows content, and nothing before it; the sink does not end before it has answered."""
    with running_sink(tmp_path, "-W", "1000", "-n", "4") as (sink, port):
        source = run_source(tmp_path, port, "-m", "4", "-s", "4")
        sink.wait(20)
    sent = source.result()
    assert (sent["accepted"], sent["errors"]) == (4, 0)
    assert 1000 <= sent["dot_p50_ms"] < sent["ack_p50_ms"]
    assert sent["ack_p50_ms"] - sent["dot_p50_ms"] < 3000  # three round trips before it, none of them late


@pytest.mark.skipif(slowdisk.missing() is not None, reason="no C compiler")
def test_syncs_take_longer(tmp_path: Path) -> None:
    """Each sync of a process with the library takes at least the delay; without a delay there is no library."""
    assert slowdisk.environment(0.0, tmp_path) == {}
    program = ("import os, sys, time\nfd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\nbegan = time.monotonic()\n"
               "os.fsync(fd); os.fdatasync(fd)\nprint(time.monotonic() - began)")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True,
                          env=os.environ | slowdisk.environment(200.0, tmp_path))
    assert float(done.stdout) >= 0.4, done.stderr


def test_what_others_use_is_seen() -> None:
    """A process that is not ours counts; what is said to be ours does not."""
    others = Others()
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert others.cores(0.0) > 0.0
    assert others.cores(1e6) == 0.0


@pytest.mark.parametrize("name", [name for name in OTHERS if CANDIDATES[name].own_resolver])
def test_a_missing_mta_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that cannot run here says why: what is missing and how to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("HARAKA", "EXIM4", "OPENSMTPD"):
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    monkeypatch.setattr("bench.postfix.program", lambda _: None)
    why_not = CANDIDATES[name].unavailable()
    assert why_not is not None
    assert "not installed" in why_not
    assert "install " in why_not
