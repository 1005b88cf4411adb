"""`mta sandbox` as an operator uses it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mta.cli import main
from mta.sandbox.client import Sandbox, environment
from tests.sandbox.helpers import Smtp


def start(*arguments: str) -> subprocess.Popen[str]:
    """`mta sandbox` in a process."""
    return subprocess.Popen([sys.executable, "-m", "mta", "sandbox", *arguments], env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_it_runs_in_the_foreground_until_a_signal(tmp_path: Path) -> None:
    """One JSON line when it is ready, what to configure on stderr, and on SIGTERM a summary and exit code 0."""
    control = str(tmp_path / "control")
    process = start("--dns", "127.0.0.1:0", "--port", "0", "--stats", control)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["control"] == control
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f'dns: {{servers: ["{ready["dns"]}"]}}' in stderr
    assert f"port: {ready['smtp_port']}" in stderr
    assert "0 messages" in stderr
    assert not (tmp_path / "control").exists()


def test_errors_have_their_exit_codes(tmp_path: Path, sandbox: Sandbox) -> None:
    """A faulty file is 78, a port that is taken 69, each with one clear line."""
    path = tmp_path / "bad.yaml"
    path.write_text("latency: 5\n")
    process = start("-c", str(path))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 78
    assert stderr.startswith(f"{path}:1:1: latency: unknown option, expected one of dns, smtp_port, ")
    assert stderr.count("\n") == 1
    process = start("--dns", sandbox.dns, "--port", "0", "--stats", str(tmp_path / "c"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 69
    assert "Address already in use" in stderr


@pytest.mark.parametrize(("option", "where"), [
    ("--dns", "0.0.0.0:0"), ("--dns", "[::]:0"), ("--stats", "0.0.0.0:0"), ("--dns", "192.0.2.1:0"),
])
def test_nothing_outside_loopback(tmp_path: Path, option: str, where: str) -> None:
    """Neither DNS server nor control socket can be put where others reach them."""
    process = start("--dns", "127.0.0.1:0", "--port", "0", "--stats", str(tmp_path / "c"), option, where)
    out, stderr = process.communicate(timeout=60)
    assert (process.returncode, out) == (69, "")
    assert stderr == f"mta sandbox: cannot start: {where} is not on loopback, where the sandbox has to stay\n"


def test_questions(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts and lists for people and as JSON, and changes."""
    def mta(*arguments: str) -> str:
        assert main(["sandbox", *arguments, "--stats", sandbox.control.where]) == 0
        return capsys.readouterr().out

    with Smtp(sandbox, "mx1.asked.test") as client:
        client.hello()
        client.deliver("u@asked.test", "q1")
    assert "accepted     1 message to 1 recipient" in mta("stats")
    assert json.loads(mta("stats", "--json"))["messages"] == 1
    assert mta("domains").splitlines()[1].split() == ["asked.test", "1", "1", "0", "0", "0", "0", "0", "1"]
    assert mta("sites").splitlines()[1].startswith("asked.test")
    assert "<s@x.test> u@asked.test 250: accepted, 250 2.0.0" in mta("log")
    assert json.loads(mta("received", "--json")) == ["q1", "u@asked.test", 1]
    assert mta("received") == "q1 u@asked.test 1\n"
    mta("set", "asked.test", '{"listening": false}')
    with pytest.raises(ConnectionRefusedError):
        Smtp(sandbox, "mx1.asked.test")
    mta("reset")
    assert mta("received") == ""


def test_wrong_use(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is said in one line, with an exit code of its own."""
    where = sandbox.control.where
    assert main(["sandbox", "set", "a.test"]) == 64
    assert main(["sandbox", "set", "a.test", "{", "--stats", where]) == 64
    assert main(["sandbox", "stats", "more"]) == 64
    assert main(["sandbox", "nonsense"]) == 64
    assert main(["sandbox", "set", "a.test", '{"latency": 1}', "--stats", where]) == 78
    assert "latency" in capsys.readouterr().err
    assert main(["sandbox", "stats", "--stats", str(tmp_path / "none")]) == 69
    assert "`mta sandbox` starts one" in capsys.readouterr().err


def test_stop() -> None:
    """`mta sandbox stop` ends it."""
    with Sandbox() as sandbox:
        assert main(["sandbox", "stop", "--stats", sandbox.control.where]) == 0
        assert sandbox.process.wait(60) == 0
