"""A child for tests of the supervisor: plain Python, behaves as a file tells it, reports what happens to it.

Beside the report socket FAKE_REPORT lies `behaviour`, JSON: by child name one word, read anew at each start.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import sys
import time
from pathlib import Path

from mta.control.channel import CONTROL_LIMIT, FrameReader, encode
from mta.control.line import ChildSetup

BEAT_S = 0.1


def main() -> int:
    """Do what `behaviour` says."""
    setup = ChildSetup.from_json(os.environ["MTA_CHILD"])
    report = Path(os.environ["FAKE_REPORT"])
    try:
        behaviour = json.loads((report.parent / "behaviour").read_text()).get(setup.name, "")
    except FileNotFoundError:
        behaviour = ""
    reporter = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reporter.connect(str(report))

    def tell(what: str, **facts: object) -> None:
        reporter.send(json.dumps({"child": setup.name, "pid": os.getpid(), "what": what, **facts}).encode())

    line = socket.socket(fileno=setup.line_fd)
    reader = FrameReader(CONTROL_LIMIT)
    silent: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: silent.append(number))
    listeners = [socket.socket(fileno=fd) for _, fd in setup.listeners]
    tell(
        "started", shards=setup.shards, workers=setup.workers, ids=[os.getuid(), os.getgid(), os.getgroups()],
        ports=[sock.getsockname()[:2] for sock in listeners], indexes=[index for index, _ in setup.listeners],
        environment=sorted(os.environ), group=os.getpgid(0),
    )  # fmt: skip
    if behaviour == "fail":
        line.sendall(encode(["failed", 78, "this cannot be"]))
        return 78
    if behaviour == "crash":
        print("Traceback of a crash", file=sys.stderr)
        return 1
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour != "slow":
        line.sendall(encode(["ready"]))
    if behaviour == "accept":
        peer, _ = listeners[0].accept()
        tell("accepted", text=peer.recv(100).decode())
    while True:
        if not silent:
            try:
                line.sendall(encode(["heartbeat", time.monotonic()]))
            except OSError:
                pass
        readable, _, _ = select.select([line], [], [], BEAT_S)
        if not readable:
            continue
        try:
            data = line.recv(1_000_000)
        except ConnectionResetError:  # killed with something of ours unread
            data = b""
        if not data:
            tell("orphaned")
            if behaviour == "lingers":
                (report.parent / "release").open().close()  # until a test opens the other end of this FIFO
            return 0
        for message in reader.feed(data):
            if message[0] in ("config", "reload"):
                config = pickle.loads(message[1])
                tell(message[0], hostname=config.hostname, relay=[len(item.relay_from) for item in config.listeners],
                     run=config.run)
            elif message[0] == "family":
                tell("family", members=message[1]["members"])
            else:
                tell(message[0], grace=message[1])
                if behaviour != "deaf":
                    return 0


if __name__ == "__main__":
    sys.exit(main())
