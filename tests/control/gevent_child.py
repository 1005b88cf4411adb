"""A worker made of the real `mta.control.child` and `service`, for tests; behaves as the file `behaviour` tells it."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402

from mta.config.schema import Config  # noqa: E402
from mta.control import protocol  # noqa: E402
from mta.control.child import Child, run_child  # noqa: E402
from mta.control.exits import CANNOT_CREATE, StartError  # noqa: E402
from mta.control.protocol import QueueList, QueueRow, RequestError, WorkerStatus  # noqa: E402
from mta.control.service import RequestService  # noqa: E402

REPORT = Path(os.environ["FAKE_REPORT"])


def tell(child: Child, what: str, **facts: Any) -> None:
    """Report to the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reporter:
        reporter.connect(str(REPORT))
        reporter.send(json.dumps({"child": child.setup.name, "pid": child.pid, "what": what, **facts}).encode())


def main(child: Child) -> None:
    """Start, answer, finish."""
    try:
        behaviour = json.loads((REPORT.parent / "behaviour").read_text()).get(child.setup.name, "")
    except FileNotFoundError:
        behaviour = ""
    number = child.setup.number
    row = QueueRow("example.org", "example.org", 1, 1)

    def answer(command: str, _arguments: dict[str, Any]) -> object:
        if behaviour == "stuck":
            gevent.sleep(60)
        match command:
            case "status":
                return WorkerStatus(number, child.pid, 1.0, child.setup.shards)
            case "queues":
                return QueueList([row], 1, 1, 1)
        raise RequestError("is of no use")

    def on_reload(config: Config) -> None:
        tell(child, "reloaded", hostname=config.hostname)
        if behaviour == "clumsy":
            raise ValueError("clumsy")

    if behaviour == "no disk":
        raise StartError(CANNOT_CREATE, "there is no disk")
    if behaviour == "bug":
        raise ZeroDivisionError("a bug")
    if behaviour == "no memory":
        gevent.signal_handler(signal.SIGUSR1, bytearray, 1 << 62)
    told_to_hang = gevent.event.Event()
    if behaviour == "hang":
        gevent.signal_handler(signal.SIGUSR1, told_to_hang.set)
    service = RequestService(protocol.worker_socket(child.config.run, number), answer)
    service.start()
    child.on_reload = on_reload
    child.ready()
    tell(child, "started", inheritable=[os.get_inheritable(fd) for fd in (child.setup.line_fd, *child.setup.lock_fds)],
         sockets=[[index, sock.getsockname()[1]] for index, sock in child.sockets()])
    if behaviour == "hang":
        told_to_hang.wait()
        monkey.get_original("time", "sleep")(60)
    child.stop_requested.wait()
    left_s = child.deadline - time.monotonic()
    tell(child, "stopping", left_s=left_s, orphaned=child.orphaned)
    if behaviour == "busy":
        tell(child, "finished", in_time=child.finish(gevent.event.Event()))
    service.stop()


if __name__ == "__main__":
    sys.exit(run_child(main))
