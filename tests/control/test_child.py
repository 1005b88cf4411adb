"""The life of a child, with the real supervisor, real gevent children and the real control process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mta.control import exits
from mta.control.client import ControlClient
from tests.control.helpers import ROOT, Fixture, Running

GEVENT = {"FAKE_CHILD": "gevent"}
WORKERS = {"worker-0", "worker-1"}


@pytest.fixture
def start(mta: Fixture) -> Callable[..., Running]:
    """Start a supervisor whose children are real ones."""

    def starter(timing: dict[str, float] | None = None, **behaviour: str) -> Running:
        mta.behave(**behaviour)
        return mta.start(timing, GEVENT)

    return starter


def client(mta: Fixture) -> ControlClient:
    """A connection to its control process."""
    return ControlClient(str(mta.directory / "run"))


def test_status_tells_of_every_process(mta: Fixture, start: Callable[..., Running]) -> None:
    """Through the control socket: the supervisor, its children, and what each worker says of itself."""
    running = start()
    running.ready()
    facts = mta.reports("started", WORKERS)
    with client(mta) as asked:
        status = asked.status()
    assert (status.hostname, status.family.pid, status.missing) == ("mta.example.net", running.process.pid, [])
    assert [(worker.worker, worker.pid, worker.shards) for worker in status.workers] == [
        (number, facts[f"worker-{number}"]["pid"], [number]) for number in range(2)
    ]
    assert [(member.role, member.state) for member in status.family.members] == [
        ("worker", "ready"), ("worker", "ready"), ("control", "ready")
    ]  # fmt: skip


def test_descriptors_of_the_line_and_locks_go_no_further(mta: Fixture, start: Callable[..., Running]) -> None:
    """What a child itself starts must not hold the spool or keep the line open; the listening sockets are there."""
    (_, port), = start().ready()
    fact = mta.report("worker-0", "started")
    assert fact["inheritable"] == [False, False, False]
    assert fact["sockets"] == [[0, port]]


def test_queues_are_merged_over_the_workers(mta: Fixture, start: Callable[..., Running]) -> None:
    """A queue that both workers have is one line with the sum."""
    start().ready()
    with client(mta) as asked:
        found = asked.queues("", 10, "deliveries")
    assert [(row.name, row.deliveries) for row in found.rows] == [("example.org", 2)]
    assert (found.queues, found.deliveries, found.missing) == (1, 2, [])


def test_a_worker_that_is_down_is_named(mta: Fixture, start: Callable[..., Running]) -> None:
    """The answer has the part of the others and says whose part is not in it, and why."""
    running = start({"restart_first": 60.0, "restart_cap": 60.0})
    running.ready()
    os.kill(mta.report("worker-1", "started")["pid"], signal.SIGKILL)
    running.line("killed by SIGKILL")
    with client(mta) as asked:
        status = asked.status()
        while status.family.members[1].state != "waiting":  # the control process is told a moment after the log
            status = asked.status()
    assert [worker.worker for worker in status.workers] == [0]
    assert [entry.worker for entry in status.missing] == [1]
    assert "is not running (killed by SIGKILL" in status.missing[0].reason


def test_an_error_of_a_worker_is_passed_on(mta: Fixture, start: Callable[..., Running]) -> None:
    """What a worker cannot answer is an error with its text, for the one who asked."""
    start().ready()
    with client(mta) as asked, pytest.raises(exits.OperatorError, match="is of no use") as caught:
        asked.message("0000000000000")
    assert caught.value.exit_code == exits.UNAVAILABLE
    with client(mta) as asked, pytest.raises(exits.OperatorError, match="is no message id") as caught:
        asked.message("nonsense")
    assert caught.value.exit_code == exits.USAGE


@pytest.mark.parametrize(("kind", "fields", "says"), [
    ("reroute", {"pool": "nowhere", "filter": "queue=*"}, "reroute: there is no pool nowhere"),
    ("suspend", {"target": "source:none"}, "suspend: there is no source none"),
    ("limit", {"target": "provider:none", "connections": 1}, "limit: there is no provider none"),
    ("pause", {"filter": "tenat=x"}, "no field 'tenat'"),
    ("pause", {"filter": "queue=*", "reason": "x" * 1000}, "at most 500 characters"),
    ("limit", {"target": "mx.test"}, "limit: to what?"),
])
def test_an_order_that_makes_no_sense_is_a_fault_of_who_gives_it(
        mta: Fixture, start: Callable[..., Running], kind: str, fields: dict[str, Any], says: str) -> None:
    """Exit code 64, whoever finds it out; 69 is for an MTA that does not answer."""
    start().ready()
    with client(mta) as asked, pytest.raises(exits.OperatorError) as caught:
        asked.order(kind, **fields)
    assert says in str(caught.value)
    assert caught.value.exit_code == exits.USAGE
    with client(mta) as asked, pytest.raises(exits.OperatorError) as caught:
        asked.touched("tenat=x")
    assert caught.value.exit_code == exits.USAGE


def test_reload_reaches_the_child(mta: Fixture, start: Callable[..., Running]) -> None:
    """`on_reload` gets the new configuration; what it raises is logged and stops nothing."""
    running = start(worker_0="clumsy")
    running.ready()
    mta.write_config(hostname="new.example.net")
    running.signal(signal.SIGHUP)
    facts = mta.reports("reloaded", WORKERS)
    assert facts["worker-0"]["hostname"] == "new.example.net"
    running.line("ValueError: clumsy")
    running.signal(signal.SIGTERM)
    mta.report("worker-0", "stopping")
    assert running.exit_code() == exits.OK


def test_stop_has_a_deadline(mta: Fixture, start: Callable[..., Running]) -> None:
    """A child knows how long it may take, and `finish` returns when that is over."""
    mta.write_config(shutdown="500ms")
    running = start({"stop_margin": 5.0}, worker_0="busy")
    running.ready()
    running.signal(signal.SIGTERM)
    assert mta.report("worker-0", "stopping")["left_s"] <= 0.5
    assert mta.report("worker-0", "finished")["in_time"] is False
    assert running.exit_code() == exits.OK


def test_a_second_stop_moves_the_deadline(mta: Fixture, start: Callable[..., Running]) -> None:
    """A child that waits for an hour's work ends at once when it is told to."""
    mta.write_config(shutdown="1h")
    running = start({"quick": 5.0}, worker_0="busy")
    running.ready()
    running.signal(signal.SIGINT)
    assert mta.report("worker-0", "stopping")["left_s"] > 3000
    running.signal(signal.SIGINT)
    assert mta.report("worker-0", "finished")["in_time"] is False
    assert running.exit_code() == exits.OK
    assert "SIGKILL" not in running.stderr()


def test_orphans_stop_by_themselves(mta: Fixture, start: Callable[..., Running]) -> None:
    """kill -9 of the supervisor: children notice and end, quickly; a new start then takes over."""
    running = start(worker_0="busy")
    running.ready()
    running.signal(signal.SIGKILL)
    facts = mta.reports("stopping", WORKERS)
    assert all(fact["orphaned"] and fact["left_s"] <= 2.0 for fact in facts.values())
    again = start()
    again.ready()


def test_a_worker_that_is_terminated_alone_finishes_and_comes_back(mta: Fixture, start: Callable[..., Running]) -> None:
    """SIGTERM to one worker is a restart by hand: it finishes within `shutdown`, the supervisor starts it again."""
    mta.write_config(shutdown="1h")
    running = start()
    running.ready()
    pid = mta.report("worker-0", "started")["pid"]
    os.kill(pid, signal.SIGTERM)
    assert 3000.0 < mta.report("worker-0", "stopping")["left_s"] <= 3600.0
    assert mta.report("worker-0", "started")["pid"] != pid


def test_a_blocked_hub_is_shown_and_replaced(mta: Fixture, start: Callable[..., Running]) -> None:
    """A hub that does not turn sends no heartbeat: its stacks are on stderr before it is replaced."""
    running = start({"heartbeat_limit": 2.5}, worker_0="hang")
    running.ready()
    pid = mta.report("worker-0", "started")["pid"]
    os.kill(pid, signal.SIGUSR1)
    running.line(f"worker-0 (pid {pid}) hangs: no heartbeat")
    mta.behave()
    running.line("Fatal Python error: Aborted")
    running.line("in main")
    running.line("killed by SIGABRT")
    mta.report("worker-0", "started")


def test_who_finds_no_memory_starts_anew(mta: Fixture, start: Callable[..., Running]) -> None:
    """A greenlet that ends for want of memory leaves no process behind that lacks it: one line, and a new one."""
    running = start(worker_0="no memory")
    running.ready()
    old = mta.report("worker-0", "started")["pid"]
    os.kill(old, signal.SIGUSR1)
    running.line("there is no memory: this process ends, and is started again")
    mta.behave()
    assert mta.report("worker-0", "started")["pid"] != old
    assert "Traceback" not in "\n".join(running.lines)


def test_a_failed_start_is_one_clear_line(mta: Fixture, start: Callable[..., Running]) -> None:
    """A StartError of a child ends the start with its text and code."""
    running = start(worker_0="no disk")
    assert running.exit_code() == exits.CANNOT_CREATE
    assert "cannot start: worker-0: there is no disk" in running.stderr()
    assert "Traceback" not in "\n".join(running.lines)


def test_a_bug_at_the_start_shows_its_traceback(mta: Fixture, start: Callable[..., Running]) -> None:
    """Any other exception is a bug: traceback on stderr, code 70."""
    running = start(worker_0="bug")
    assert running.exit_code() == exits.SOFTWARE
    assert "ZeroDivisionError: a bug" in running.stderr()
    assert "cannot start: worker-0: bug: ZeroDivisionError: a bug" in "\n".join(running.lines)


def test_the_control_socket_is_for_the_group(mta: Fixture, start: Callable[..., Running]) -> None:
    """control.sock is 0660, those of workers are 0600; all are gone after the stop."""
    running = start()
    running.ready()
    mta.reports("started", WORKERS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (mta.directory / "run").glob("*.sock")}
    assert modes == {"control.sock": 0o660, "worker-0.sock": 0o600, "worker-1.sock": 0o600}
    running.signal(signal.SIGTERM)
    assert running.exit_code() == exits.OK
    assert not list((mta.directory / "run").glob("*.sock"))


SCRIPT = """
import gevent.monkey; gevent.monkey.patch_all()
import sys, time, gevent
from mta.control import server, protocol
from mta.control.protocol import *
from mta.control.service import RequestService
server.ASK_TIMEOUT_S = 0.3
run = sys.argv[1]
def stuck(command, arguments): gevent.sleep(60)
def fine(command, arguments):
    if command == "queues" and "names" in arguments:
        return QueueList([QueueRow(name, name, 5, 5) for name in arguments["names"]], 1, 5, 5)
    if command == "queues":
        return QueueList([QueueRow("b", "b", 5, 5)], 7, 20, 30)
    return WorkerStatus(1, 11, 1.0)
def other(command, arguments):
    if command == "queues" and "names" in arguments:
        return QueueList([QueueRow("a", "a", 9, 9)], 1, 9, 9)
    if command == "queues":
        return QueueList([QueueRow("a", "a", 9, 9)], 1, 9, 9)
    return {"nonsense": 1}
for number, handler in enumerate([stuck, fine, other]):
    RequestService(protocol.worker_socket(run, number), handler).start()
family = Family(1, 1, [Member("worker", n, n + 10, "ready", [n]) for n in range(3)])
control = server.ControlServer(run, lambda: family, lambda: "h.test")
"""


def run_script(directory: Any, code: str) -> str:
    """Run code in a patched process of its own; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT + code, str(directory)], capture_output=True, text=True, timeout=20, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_stuck_worker_does_not_hang_the_answer(tmp_path: Any) -> None:
    """Workers are asked at the same time and each has a limit: who does not answer, or nonsense, is named."""
    out = run_script(tmp_path, """
begun = time.monotonic()
status = control.answer("status", {})
print(time.monotonic() - begun < 10, [w.worker for w in status.workers])
for entry in status.missing: print(entry.worker, entry.reason)
""")
    first, *missing = out.splitlines()
    assert first == "True [1]"
    assert missing[0] == "0 does not answer within 0 s"
    assert missing[1].startswith("2 the answer is not understood (WorkerStatus")


@pytest.mark.parametrize(("state", "said"), [
    ("starting", "is starting: it does not answer yet"), ("ready", "does not answer: nobody listens on its socket"),
    ("waiting", "is not running (not started yet)")])
def test_a_worker_that_is_not_there_is_told_in_words(tmp_path: Any, state: str, said: str) -> None:
    """Operators are shown no number of an error, no socket there or one that nobody serves."""
    out = run_script(tmp_path, f"""
import socket
family.members[:] = [Member("worker", n, n + 10, {state!r}, [n]) for n in (7, 8)]
socket.socket(socket.AF_UNIX).bind(protocol.worker_socket(run, 8))
for entry in control.answer("status", {{}}).missing: print(entry.worker, entry.reason)
""")
    assert out.splitlines() == [f"7 {said}", f"8 {said}"]


def test_counts_of_the_queues_shown_are_complete(tmp_path: Any) -> None:
    """A queue among the first of one worker has its share of the others counted, though it is not among their first."""
    out = run_script(tmp_path, """
found = control.answer("queues", {"limit": 10})
print([(row.name, row.deliveries) for row in found.rows], found.queues, found.deliveries, found.recipients)
print([entry.worker for entry in found.missing])
""")
    assert out.splitlines() == ["[('a', 14), ('b', 5)] 7 29 39", "[0]"]


def test_requests_are_checked(tmp_path: Any) -> None:
    """Wrong arguments are an error for the one who asked."""
    out = run_script(tmp_path, """
for command, arguments in [("queues", {"limit": 0}), ("queues", {"limit": 10**9}), ("queues", {"order": "x"}),
                           ("queue", {}), ("message", {"id": "?"}), ("frobnicate", {})]:
    try: control.answer(command, arguments)
    except RequestError as error: print(error)
""")
    assert out.count("\n") == 6
