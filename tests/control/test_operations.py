"""The unit of systemd and the operator's page agree with the code."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from mta.control import exits
from mta.control.line import ALARM_MARGIN_S, ORPHAN_GRACE_S
from mta.control.spool import LOCK_WAIT_S, RUN_MODE, SPOOL_VERSION
from mta.control.startup import MAX_OPEN_FILES, UMASK
from mta.control.supervisor import Timing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
CODES = {value for name, value in vars(exits).items() if name.isupper()}


def unit() -> configparser.SectionProxy:
    """The [Service] section; of a repeated key the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # keep the case
    parser.read(ROOT / "systemd" / "mta.service")
    return parser["Service"]


def test_the_unit_names_documentation_that_is_installed() -> None:
    """Installed as the page says, the file is there: the wheel brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert "python3 -m venv /opt/mta" in PAGE
    name = re.search(r"^Documentation=file:///opt/mta/(.*)$", (ROOT / "systemd" / "mta.service").read_text(), re.M)
    assert name is not None
    directory, _, file = name[1].rpartition("/")
    [source] = [there for there, target in brought.items() if target == directory]
    assert (ROOT / source / file).is_file()


def test_the_unit_fits_the_code() -> None:
    """Exit codes that are ours, more patience than the supervisor has itself, its umask and limits."""
    service = unit()
    no_restart = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert no_restart < CODES - {exits.OK, exits.TEMPORARY}
    timing = Timing()
    assert float(service["TimeoutStartSec"]) > timing.boot_limit + LOCK_WAIT_S
    assert float(service["WatchdogSec"]) > timing.heartbeat_limit
    assert int(service["UMask"], 8) == UMASK
    assert int(service["LimitNOFILE"]) == MAX_OPEN_FILES
    assert service["Type"] == "notify"


def test_a_unix_socket_can_get_its_group_under_the_unit() -> None:
    """@privileged has the calls of chown(2) in it, which work without privileges within one's own groups. And others
    may search the runtime directory, as its sockets have modes of their own."""
    text = (ROOT / "systemd" / "mta.service").read_text()
    assert re.findall("^SystemCallFilter=(.*)$", text, re.M) == ["@system-service", "~@privileged", "@chown"]
    assert int(unit()["RuntimeDirectoryMode"], 8) == RUN_MODE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """No unknown key, no wrong value."""
    for name in ("mta.service", "mta.socket"):
        text = (ROOT / "systemd" / name).read_text().replace("/usr/bin/mta", "/bin/true")
        (tmp_path / name).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "mta.service"), str(tmp_path / "mta.socket")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def test_the_page_has_the_numbers_of_the_code() -> None:
    """Heartbeats, back-off, waits and versions."""
    timing = Timing()
    for text in (
        f"silent for {timing.heartbeat_limit:.0f} s",
        f"{timing.abort_grace:.0f} s later SIGKILL",
        f"{timing.restart_first} s, doubled up to {timing.restart_cap:.0f} s",
        f"{timing.stop_margin:.0f} s more is killed",
        f"finish quickly ({ORPHAN_GRACE_S:.0f} s)",
        f"up to {LOCK_WAIT_S:.0f} s",
        f"layout, now {SPOOL_VERSION}",
        f"umask of all processes is 0{UMASK:o}",
    ):
        assert text in " ".join(PAGE.split())
    assert ORPHAN_GRACE_S + ALARM_MARGIN_S < LOCK_WAIT_S
    assert {int(code) for code in re.findall(r"^\| (\d\d) \|", PAGE, re.MULTILINE)} < CODES
