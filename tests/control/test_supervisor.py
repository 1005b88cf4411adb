"""The supervisor: start, ready, death of children, reload, stop; with fake children and real signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mta.control import exits, log, startup, systemd
from mta.control.member import MemberProcess
from mta.control.supervisor import Supervisor, Timing, restart_delay
from tests.control.helpers import PATIENCE_S, ROOT, Fixture

CHILDREN = {"worker-0", "worker-1", "control"}
WORKERS = {"worker-0", "worker-1"}


def test_ready_names_the_actual_ports_which_all_workers_share(mta: Fixture) -> None:
    """`ready:` is written when every child is, with the port that 0 became; each worker inherits the same sockets."""
    mta.write_config(listeners=[{"smtp": "127.0.0.1:0"}, {"smtp": "[::1]:0"}])
    running = mta.start()
    started = mta.reports("started", CHILDREN)
    addresses = running.ready()
    assert [host for host, _ in addresses] == ["127.0.0.1", "::1"]
    assert all(port > 0 for _, port in addresses)
    for worker in WORKERS:
        assert [tuple(pair) for pair in started[worker]["ports"]] == addresses
        assert started[worker]["indexes"] == [0, 1]
    assert started["control"]["ports"] == []


def test_not_ready_before_the_last_child_is(mta: Fixture) -> None:
    """A child that has not said ready keeps the MTA from being ready; a stop in the meantime exits 0."""
    mta.behave(worker_1="slow")
    running = mta.start()
    mta.reports("config", CHILDREN)
    running.signal(signal.SIGTERM)
    assert running.exit_code() == 0
    assert "ready:" not in running.stderr()


def test_who_hears_that_it_is_ready_finds_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control process, which others ask, is told of the last child before the ready line is written."""
    supervisor = Supervisor("mta.yaml")
    control = MemberProcess("control", 0, [], state="starting")
    supervisor._members = [MemberProcess("worker", 0, [0], state="ready"), control]
    supervisor._resources = startup.Resources([], [], [[0]])
    supervisor._notifier, supervisor._started_us = systemd.Notifier({}), 0
    told: list[object] = []
    monkeypatch.setattr(supervisor, "_say", lambda _, message: told.append(
        [member["state"] for member in message[1]["members"]]))
    monkeypatch.setattr(log, "announce", told.append)
    supervisor._on_message(control, ["ready"])
    assert told == [["ready", "ready"], "ready: no listeners"]


def test_the_supervisor_does_not_load_gevent(mta: Fixture) -> None:
    """The supervisor is plain Python: it forks, which greenlets do not survive."""
    code = "import sys, mta.cli, mta.cli.run, mta.control.supervisor as s; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    running = mta.start()
    running.ready()
    assert "gevent" not in Path(f"/proc/{running.process.pid}/maps").read_text()


def test_stop_gives_the_children_the_configured_time(mta: Fixture) -> None:
    """SIGTERM: workers get `shutdown` to finish, the control process goes last, exit 0."""
    running = mta.start()
    running.ready()
    running.signal(signal.SIGTERM)
    stops = mta.reports("stop", WORKERS)
    assert [stops[worker]["grace"] for worker in sorted(WORKERS)] == [2.0, 2.0]
    mta.report("control", "stop")
    assert running.exit_code() == exits.OK


def test_a_child_that_does_not_stop_is_killed(mta: Fixture) -> None:
    """After `shutdown` and a margin SIGKILL comes, and the exit code is still 0."""
    mta.write_config(shutdown="100ms")
    mta.behave(worker_0="deaf")
    running = mta.start({"stop_margin": 0.3})
    pid = mta.report("worker-0", "started")["pid"]
    running.ready()
    running.signal(signal.SIGTERM)
    running.line(f"worker-0 (pid {pid}) does not end: SIGKILL")
    assert running.exit_code() == exits.OK


def test_a_second_interrupt_stops_at_once(mta: Fixture) -> None:
    """The first SIGINT waits for what is in flight, the second does not."""
    mta.write_config(shutdown="1h")
    mta.behave(worker_0="deaf", control="deaf")
    running = mta.start({"quick": 2.0})
    running.ready()
    running.signal(signal.SIGINT)
    assert mta.report("worker-0", "stop")["grace"] == 3600.0
    running.signal(signal.SIGINT)
    assert mta.report("worker-0", "stop")["grace"] == 0.0
    assert running.exit_code() == exits.OK


def test_an_interrupt_that_comes_twice_is_one(mta: Fixture) -> None:
    """What a wrapper passes on beside the terminal does not cut off what is in flight."""
    mta.behave(worker_0="deaf")
    mta.write_config(shutdown="1h")
    running = mta.start({"echo": 60.0, "quick": 0.3})
    running.ready()
    running.signal(signal.SIGINT)
    running.line("stopping: SIGINT")
    running.signal(signal.SIGINT)
    running.signal(signal.SIGQUIT)
    assert running.exit_code() == exits.OK
    assert "second SIGINT" not in running.stderr()


def test_children_do_not_get_the_terminals_interrupt(mta: Fixture) -> None:
    """Each child is a process group of its own: Ctrl-C reaches the supervisor alone, which stops them in order."""
    mta.start()
    started = mta.reports("started", CHILDREN)
    assert all(fact["group"] == fact["pid"] for fact in started.values())


def test_a_worker_that_dies_is_started_again(mta: Fixture) -> None:
    """kill -9 of a worker: its limits are cleared, it comes back with its shards and sockets, the others go on."""
    running = mta.start()
    started = mta.reports("started", CHILDREN)
    running.ready()
    os.kill(started["worker-1"]["pid"], signal.SIGKILL)
    assert "killed by SIGKILL" in running.line("worker-1 (pid")
    mta.report("worker-1", "cleared")
    again = mta.report("worker-1", "started")
    assert (again["shards"], again["ports"]) == (started["worker-1"]["shards"], started["worker-1"]["ports"])
    assert again["pid"] != started["worker-1"]["pid"]
    os.kill(started["worker-0"]["pid"], 0)
    restarts: list[int] = []
    while restarts != [0, 1, 0]:  # it is told of the end, too, which may reach us later than the start of the new one
        restarts = [member["restarts"] for member in mta.report("control", "family")["members"]]


def test_a_connection_in_the_backlog_survives_the_worker(mta: Fixture) -> None:
    """A client that was not yet accepted when the only worker died is served by its successor."""
    mta.write_config(workers=1)
    running = mta.start()
    pid = mta.report("worker-0", "started")["pid"]
    (address,) = running.ready()
    with socket.create_connection(address) as client:
        client.sendall(b"still here")
        mta.behave(worker_0="accept")
        os.kill(pid, signal.SIGKILL)
        assert mta.report("worker-0", "accepted")["text"] == "still here"


def test_a_worker_is_restarted_on_the_accepted_configuration(mta: Fixture) -> None:
    """A file that was broken since does not keep a crashed worker from coming back: it gets what its siblings have."""
    running = mta.start()
    pid = mta.report("worker-0", "started")["pid"]
    running.ready()
    mta.config.write_text("hostname: [broken\n")
    os.kill(pid, signal.SIGKILL)
    mta.report("worker-0", "cleared")
    assert mta.report("worker-0", "config")["hostname"] == "mta.example.net"


def test_a_worker_that_cannot_start_later_is_tried_again(mta: Fixture) -> None:
    """A failed start while running is logged with its text and repeated; the others go on."""
    running = mta.start()
    pid = mta.report("worker-0", "started")["pid"]
    running.ready()
    mta.behave(worker_0="fail")
    os.kill(pid, signal.SIGKILL)
    running.line("this cannot be; starting it again in")
    mta.behave()
    mta.report("worker-0", "started")
    running.signal(signal.SIGTERM)
    assert running.exit_code() == exits.OK


def test_the_back_off_doubles_up_to_its_cap() -> None:
    """0.2 s, then twice as much each time, at most 30 s, with a jitter of a half."""
    timing = Timing()
    for ends, middle in [(1, 0.2), (2, 0.4), (5, 3.2), (9, 30.0), (10_000, 30.0)]:
        delays = [restart_delay(ends, timing) for _ in range(100)]
        assert middle * 0.5 <= min(delays) < max(delays) <= middle * 1.5


def test_a_child_that_cannot_start_stops_the_start(mta: Fixture) -> None:
    """At start-up the child's reason becomes ours: its text on stderr, its exit code, nothing left running."""
    mta.behave(worker_1="fail")
    running = mta.start()
    assert running.exit_code() == 78
    assert "cannot start: worker-1: this cannot be" in running.stderr()
    assert "ready:" not in "\n".join(running.lines)


def test_a_child_that_crashes_at_start_stops_the_start(mta: Fixture) -> None:
    """A crash without a report ends in the code for bugs, and the crash's own lines are on stderr."""
    mta.behave(control="crash")
    running = mta.start()
    assert running.exit_code() == exits.SOFTWARE
    assert "Traceback of a crash" in running.stderr()
    assert "cannot start: control: exit code 1, see the lines before" in "\n".join(running.lines)


def test_a_child_that_is_never_ready_is_given_up(mta: Fixture) -> None:
    """The time for the start of a child is bounded."""
    mta.behave(worker_0="slow")
    running = mta.start({"boot_limit": 0.3})
    assert running.exit_code() == exits.SOFTWARE
    assert "is not ready after 0 s: SIGABRT" in running.stderr()


def test_a_child_that_hangs_is_aborted_and_started_again(mta: Fixture) -> None:
    """No heartbeat for the limit: SIGABRT, which shows its stacks, then a new process."""
    running = mta.start({"heartbeat_limit": 3.0})
    first = mta.report("worker-0", "started")["pid"]
    running.ready()
    os.kill(first, signal.SIGUSR1)  # from now on it sends none
    running.line(f"worker-0 (pid {first}) hangs")
    assert "killed by SIGABRT" in running.line("worker-0 (pid")
    assert mta.report("worker-0", "started")["pid"] != first


def test_a_hang_that_ignores_the_abort_is_killed(mta: Fixture) -> None:
    """SIGKILL follows SIGABRT when that does not help: here because the process is stopped."""
    running = mta.start({"heartbeat_limit": 3.0, "abort_grace": 0.3})
    pid = mta.report("worker-0", "started")["pid"]
    running.ready()
    os.kill(pid, signal.SIGSTOP)
    running.line(f"worker-0 (pid {pid}) hangs")
    running.line(f"worker-0 (pid {pid}) does not end: SIGKILL")
    assert mta.report("worker-0", "started")["pid"] != pid


def test_a_supervisor_that_was_stopped_does_not_blame_its_children(mta: Fixture) -> None:
    """After SIGSTOP and SIGCONT the heartbeats that waited are read before anyone is judged by them."""
    running = mta.start({"heartbeat_limit": 3.0})
    started = mta.reports("started", CHILDREN)
    running.ready()
    running.signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(3.5)  # longer than the limit
    running.signal(signal.SIGCONT)
    running.signal(signal.SIGTERM)
    assert running.exit_code() == exits.OK
    assert "hangs" not in running.stderr()
    assert started["worker-0"]["pid"]


def test_reload_passes_a_valid_configuration_on(mta: Fixture) -> None:
    """SIGHUP: the children get the new configuration, workers that start later too."""
    running = mta.start()
    pid = mta.report("worker-0", "started")["pid"]
    running.ready()
    mta.write_config(hostname="new.example.net")
    running.signal(signal.SIGHUP)
    facts = mta.reports("reload", CHILDREN)
    assert {fact["hostname"] for fact in facts.values()} == {"new.example.net"}
    os.kill(pid, signal.SIGKILL)
    mta.report("worker-0", "cleared")
    assert mta.report("worker-0", "config")["hostname"] == "new.example.net"


def test_reload_with_errors_changes_nothing(mta: Fixture) -> None:
    """Every error is logged with its place; the old configuration stays in force; a later reload can succeed."""
    running = mta.start()
    running.ready()
    mta.config.write_text("hostname: x.example.net\nhostnam: y\nworkers: many\n")
    running.signal(signal.SIGHUP)
    assert "mta.yaml:2:1:" in running.line("reload:")
    assert "mta.yaml:3:" in running.line("reload:")
    running.line("the old one stays in force")
    mta.write_config(hostname="new.example.net")
    running.signal(signal.SIGHUP)
    assert mta.report("worker-0", "reload")["hostname"] == "new.example.net"


def test_reload_names_what_needs_a_restart(mta: Fixture, tmp_path: Path) -> None:
    """An option marked for a restart keeps its old value and is named; the rest of the file takes effect."""
    running = mta.start()
    running.ready()
    mta.write_config(
        hostname="new.example.net", workers=3, run=str(tmp_path / "elsewhere"),
        listeners=[{"smtp": "127.0.0.1:0", "relay_from": ["10.0.0.0/8"]}],
    )  # fmt: skip
    running.signal(signal.SIGHUP)
    fact = mta.report("worker-0", "reload")
    assert (fact["hostname"], fact["relay"], fact["run"]) == ("new.example.net", [1], str(tmp_path / "run"))
    running.line("in force now: hostname: mta.example.net -> new.example.net")
    running.line("takes effect when the MTA is restarted: workers: 2 -> 3")
    running.line("takes effect when the MTA is restarted: run:")


def test_children_of_a_killed_supervisor_notice_at_once(mta: Fixture) -> None:
    """kill -9 of the supervisor: the line of each child ends."""
    running = mta.start()
    running.ready()
    running.signal(signal.SIGKILL)
    mta.reports("orphaned", CHILDREN)


def test_a_new_start_waits_for_orphans(mta: Fixture) -> None:
    """What a killed supervisor left behind holds the lock of the spool: the next start goes on when it is gone."""
    os.mkfifo(mta.directory / "release")
    mta.behave(worker_0="lingers")
    running = mta.start()
    running.ready()
    running.signal(signal.SIGKILL)
    mta.reports("orphaned", CHILDREN)
    mta.behave()
    again = mta.start()
    again.line("waiting for processes that an earlier instance left behind")
    with (mta.directory / "release").open("w"):
        pass
    again.ready()


def test_a_second_instance_is_refused(mta: Fixture) -> None:
    """One clear line with the pid of the instance that runs, and an exit code of its own."""
    first = mta.start()
    first.ready()
    second = mta.start()
    assert second.exit_code() == exits.TEMPORARY
    expected = f"another instance is running on spool {mta.spool} (pid {first.process.pid})"
    assert second.stderr() == f"mta: not started: {expected}"
    mta.write_config(spool=str(mta.directory / "other"))
    third = mta.start()
    assert third.exit_code() == exits.TEMPORARY
    assert "another instance is running on runtime directory" in third.stderr()


def test_a_port_that_is_taken_is_said(mta: Fixture) -> None:
    """Exit code and line name the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        mta.write_config(listeners=[{"smtp": "127.0.0.1:0"}, {"smtp": address}])
        running = mta.start()
        assert running.exit_code() == exits.UNAVAILABLE
    assert f"cannot listen on {address}: the port is taken" in running.stderr()


def test_invalid_configuration_is_said(mta: Fixture) -> None:
    """All its errors, and exit code 78."""
    mta.config.write_text("workers: many\n")
    running = mta.start()
    assert running.exit_code() == exits.CONFIG
    assert "hostname" in running.stderr()


def test_shards_left_over_find_an_owner(mta: Fixture) -> None:
    """With fewer workers than shards, each shard is still assigned; with more, each worker has one."""
    (mta.spool / "shards").mkdir(parents=True)
    (mta.spool / "version").write_text("1\n")
    for number in range(5):
        (mta.spool / "shards" / f"{number:03d}").mkdir()
    mta.start().ready()
    started = mta.reports("started", WORKERS)
    assert [started[worker]["shards"] for worker in sorted(WORKERS)] == [[0, 2, 4], [1, 3]]


def test_systemd_is_told(mta: Fixture, tmp_path: Path) -> None:
    """READY=1 when ready, RELOADING=1 and READY=1 around a reload, STOPPING=1 at the stop, WATCHDOG=1 in between.

    Children do not inherit the means to speak in our name.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        # Such a socket keeps ten datagrams, and what comes on top is lost. So it is read from the start on, and with a
        # second for the watchdog there are not as many while we stand still.
        running = mta.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"})

        def hears(word: str) -> bytes:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                manager.settimeout(max(0.01, deadline - time.monotonic()))  # in between the watchdog is fed
                text = manager.recv(4096)
                assert time.monotonic() < deadline, f"it does not say {word}"
                if text.startswith(word.encode()):
                    return text

        assert b"STATUS=2 of 2 workers; 127.0.0.1:" in hears("READY=1")
        running.ready()
        hears("WATCHDOG=1")
        hears("WATCHDOG=1")
        running.signal(signal.SIGHUP)
        assert b"MONOTONIC_USEC=" in hears("RELOADING=1")
        hears("READY=1")
        running.signal(signal.SIGTERM)
        hears("STOPPING=1")
    assert running.exit_code() == exits.OK
    environment = mta.report("worker-0", "started")["environment"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(environment)


def test_sockets_of_systemd_are_taken_by_address(mta: Fixture) -> None:
    """A passed socket with the address of a listener is used, so nothing is bound twice."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        address = passed.getsockname()
        mta.write_config(listeners=[{"smtp": "127.0.0.1:0"}, {"smtp": f"127.0.0.1:{address[1]}"}])
        running = mta.start(listen_fd=passed.fileno())
        assert running.ready()[1] == address
        assert "LISTEN_FDS" not in mta.report("worker-0", "started")["environment"]


def test_a_socket_of_systemd_without_listener_is_refused(mta: Fixture) -> None:
    """Nobody would ever accept on it, so that is an error of configuration."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        running = mta.start(listen_fd=passed.fileno())
        assert running.exit_code() == exits.CONFIG
    assert "no listener has this address" in running.stderr()
