"""What needs addresses and ports of its own: the scenarios of `namespace_program`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.integration.namespace_program import SCENARIOS

UNSHARE = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")


def _why_not() -> str:
    """Why there can be no network namespace here; empty when there can."""
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: apt-get install {'iproute2' if tool == 'ip' else 'util-linux'})"
    tried = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True,
                           check=False)
    return "" if tried.returncode == 0 else f"no network namespace of our own: {tried.stderr.strip()}"


@pytest.mark.parametrize("scenario", [one.__name__ for one in SCENARIOS])
def test_namespace(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    if reason := _why_not():
        pytest.skip(reason)
    done = subprocess.run([*UNSHARE, sys.executable, "-m", "tests.integration.namespace_program", scenario],
                          capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
