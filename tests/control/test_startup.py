"""Listening sockets, what systemd passes, what a reload merges, and the log's lines."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mta.config.hosts import Endpoint
from mta.config.loader import loads
from mta.config.schema import Config
from mta.control import exits, listen, log, privileges, reload, startup, systemd
from mta.control.exits import StartError
from mta.control.supervisor import clear_limits
from mta.delivery.limits import Limits
from tests.control.helpers import ROOT


def config(*addresses: str, more: str = "") -> Config:
    """A configuration with these listeners."""
    listeners = "".join(f'\n  - smtp: "{address}"' for address in addresses)
    return loads(f"hostname: mta.example.net\nlisteners:{listeners or ' []'}\n{more}")


def test_v4_and_v6_wildcards_are_two_listeners() -> None:
    """`[::]` takes no IPv4, so both can have the same port."""
    (first,) = listen.listen(config("0.0.0.0:0"))
    port = first.getsockname()[1]
    (second,) = listen.listen(config(f"[::]:{port}"))
    assert listen.endpoint(second) == Endpoint("::", port)
    for sock in (first, second):
        sock.close()


def test_a_failure_closes_what_was_bound() -> None:
    """The second port is taken: the first is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (free, taken)]
        free.close()
        with pytest.raises(StartError, match="taken"):
            listen.listen(config(*addresses))
        socket.create_server(("127.0.0.1", int(addresses[0].rpartition(":")[2]))).close()


def test_an_address_of_another_machine_is_said() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    with pytest.raises(StartError, match="this machine does not have the address") as caught:
        listen.listen(config("192.0.2.1:0"))
    assert caught.value.exit_code == exits.UNAVAILABLE


def test_a_unix_socket_has_its_mode_and_replaces_a_dead_one(tmp_path: Path) -> None:
    """What a killed instance has left is replaced; what is listened on, or is no socket, is left alone and told."""
    path = tmp_path / "smtp"
    for mode in ("0660", "0600"):
        (sock,) = listen.listen(loads(
            f"hostname: mta.example.net\nlisteners: [{{smtp: 'unix:{path}', mode: {mode}}}]\n"))
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        assert listen.endpoint(sock) == Endpoint(str(path), 0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        with pytest.raises(StartError, match="somebody listens on it"):
            listen.listen(config(f"unix:{path}"))
        sock.close()  # its name stays, as after kill -9
    path.unlink()
    path.write_text("mine")
    with pytest.raises(StartError, match="something else than a socket"):
        listen.listen(config(f"unix:{path}"))
    assert path.read_text() == "mine"
    with pytest.raises(StartError, match="there is no group 'nobody-has-this'") as caught:
        listen.listen(loads("hostname: a.example\nlisteners: [{smtp: 'unix:/x', group: nobody-has-this}]\n"))
    assert caught.value.exit_code == exits.CONFIG


def test_a_group_that_we_are_not_in_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user cannot give a socket to any group: the line says which, and nobody can connect."""
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    (sock,) = listen.listen(config(f"unix:{tmp_path}/other"))
    sock.close()
    text = f"hostname: a.example\nlisteners: [{{smtp: 'unix:{tmp_path}/smtp', group: root}}]\n"
    with pytest.raises(StartError, match="our user is no member of the group 'root'") as caught:
        listen.listen(loads(text))
    assert caught.value.exit_code == exits.NO_PERMISSION


def test_what_is_put_in_place_of_a_unix_socket_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can write into its directory cannot have another file made open, or given to the MTA, by root."""
    path, other = tmp_path / "smtp", tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    chown = os.chown

    def swapped(*arguments: object, **options: object) -> None:
        path.unlink()
        path.symlink_to(other)
        chown(*arguments, **options)

    monkeypatch.setattr(os, "chown", swapped)
    before = other.stat()
    owner = privileges.Identity("mta", os.getuid(), os.getgid() if os.getuid() else 12345)
    text = f"hostname: a.example\nlisteners: [{{smtp: 'unix:{path}', mode: '0666'}}]\n"
    (sock,) = listen.listen(loads(text), (), owner)
    sock.close()
    after = other.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_unix_socket_of_systemd_is_used(tmp_path: Path) -> None:
    """`ListenStream=/path` is the listener `unix:/path`; its mode is systemd's."""
    path = tmp_path / "smtp"
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(path))
        passed.listen()
        os.chmod(path, 0o666)
        assert listen.listen(config(f"unix:{path}"), [passed]) == [passed]
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with pytest.raises(StartError, match="no listener has this address"):
            listen.listen(config("127.0.0.1:0"), [passed])


def test_passed_sockets_are_for_the_process_that_they_name() -> None:
    """LISTEN_PID of another process, as when an environment leaks through, means nothing; it is removed anyway."""
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp", "OTHER": "1"}
    assert systemd.take_sockets(environment) == []
    assert environment == {"OTHER": "1"}


def test_notifications_without_systemd_do_nothing(tmp_path: Path) -> None:
    """No NOTIFY_SOCKET, or one where nobody listens."""
    systemd.Notifier({}).ready("fine")
    systemd.Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("fine")


def test_the_watchdog_is_fed_twice_as_often_as_needed() -> None:
    """And not at all when it is meant for another process."""
    assert systemd.Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_s == 15.0
    assert systemd.Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_abstract_notify_sockets_work() -> None:
    """`@name` is a socket in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0mta-test-" + os.urandom(8).hex())
        name = manager.getsockname().decode()
        systemd.Notifier({"NOTIFY_SOCKET": "@" + name[1:]}).status("one\ntwo")
        assert manager.recv(100) == b"STATUS=one two"


def test_a_reload_keeps_what_needs_a_restart() -> None:
    """Marked options keep their old value, nested ones of unmarked sections change."""
    old = config("127.0.0.1:25", more="workers: 2\nsmtp: {recipients: 5}\n")
    new = config("127.0.0.1:25", more="workers: 4\nsmtp: {recipients: 6}\nuser: root\n")
    merged = reload.merge(old, new)
    assert (merged.workers, merged.user, merged.smtp.recipients) == (2, None, 6)
    assert reload.merge(old, old) == old


def test_a_store_keeps_the_sizes_that_it_was_opened_with() -> None:
    """Segments and map are set up when a shard is opened: a reload does not claim that it changed them."""
    new = config(more="store: {segment_size: 8MB, map_size: 1GB, reserve: 1GB}\n")
    merged = reload.merge(config(), new).store
    assert (merged.segment_size, merged.map_size, merged.reserve) == (64_000_000, 64_000_000_000, 1_000_000_000)


def test_a_listener_keeps_its_address_and_changes_the_rest() -> None:
    """Listeners are matched by address: added and removed ones wait, `relay_from` of the others takes effect."""
    old = config("127.0.0.1:25", "127.0.0.1:26")
    changed = replace(old.listeners[1], hostname="other.example.net")
    new = replace(old, listeners=(*config("127.0.0.1:99").listeners, changed))
    merged = reload.merge(old, new).listeners
    assert merged == (old.listeners[0], changed)
    assert all(type(listener.smtp) is Endpoint for listener in merged)  # which equals a plain tuple


def test_pickup_directories_wait_for_a_restart() -> None:
    """A new directory waits, the options of one that stays do not."""
    old = config(more="pickup: [{directory: /a}, {directory: /b}]\n")
    new = config(more="pickup: [{directory: /c}, {directory: /a, scan: 5s}]\n")
    assert [(item.directory, item.scan) for item in reload.merge(old, new).pickup] == [("/a", 5.0), ("/b", 30.0)]


def test_auto_is_one_worker_per_usable_core() -> None:
    """Those that we may run on, not those of the machine."""
    assert startup.worker_count(config()) == len(os.sched_getaffinity(0))
    assert startup.worker_count(config(more="workers: 3\n")) == 3


def test_a_dead_workers_leases_are_given_back(tmp_path: Path) -> None:
    """What the supervisor does when a worker has died."""
    code = "import os, sys; from mta.delivery.limits import Limits; "
    code += "print(Limits(sys.argv[1], 0).acquire([('path', 1)]), flush=True); os.kill(os.getpid(), 9)"
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, cwd=ROOT, check=False)
    assert dead.stdout == b"None\n", dead.stderr
    before = Limits(str(tmp_path), 1)
    assert before.acquire([("path", 1)]) == "path"
    before.close()
    clear_limits(str(tmp_path), 0)
    after = Limits(str(tmp_path), 1)
    assert after.acquire([("path", 1)]) is None
    after.close()


def record(text: str, *arguments: object) -> logging.LogRecord:
    """A log record."""
    return logging.LogRecord("mta", logging.WARNING, __file__, 1, text, arguments, None)


def test_a_log_line_stays_a_line() -> None:
    """What came from outside cannot begin a line of its own or speak to the terminal."""
    line = log.LineFormatter("worker-1", journal=False).format(record("said %s", "hi\r\n2026 error\x1b[2J\x85"))
    assert line.endswith("Z warning worker-1: said hi\\x0d\n    2026 error\\x1b[2J\\x85")
    assert "\x1b" not in line


def test_the_journal_gets_priorities() -> None:
    """sd-daemon(3): `<4>` is a warning; the lines of a traceback go along."""
    assert log.LineFormatter("control", journal=True).format(record("a\nb")) == "<4>control: a\n<7>    b"
