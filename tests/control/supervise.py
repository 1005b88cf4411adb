"""Runs the real supervisor with fake children: `supervise.py CONFIG TIMING-JSON [LISTEN-FD]`."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from mta.config.problems import ConfigError
from mta.control import exits
from mta.control.line import ChildSetup
from mta.control.supervisor import Supervisor, Timing, child_command


def command(setup: ChildSetup) -> list[str]:
    """The fake child; with FAKE_CHILD=gevent, a worker of real parts and the real control process."""
    if os.environ.get("FAKE_CHILD") != "gevent":
        return [sys.executable, str(Path(__file__).with_name("fake_child.py")), setup.name]
    if setup.role == "control":
        return child_command(setup)
    return [sys.executable, str(Path(__file__).with_name("gevent_child.py")), setup.name]


def clear(_run: str, worker: int) -> None:
    """Report instead of touching the table of limits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reporter:
        reporter.connect(os.environ["FAKE_REPORT"])
        reporter.send(json.dumps({"child": f"worker-{worker}", "pid": os.getpid(), "what": "cleared"}).encode())


def main() -> int:
    """As `mta run` does it."""
    if len(sys.argv) > 3:  # what systemd does before exec
        os.dup2(int(sys.argv[3]), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    try:
        return Supervisor(sys.argv[1], command, clear, Timing(**json.loads(sys.argv[2]))).run()
    except exits.StartError as error:
        print(f"mta: not started: {error}", file=sys.stderr)
        return error.exit_code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exits.CONFIG


if __name__ == "__main__":
    sys.exit(main())
