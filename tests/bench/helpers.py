"""The bench's own load programs as subprocesses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.programs import LoadPrograms, Program, free_port

ADDRESS = "127.0.0.10"
LOAD = LoadPrograms()


@contextmanager
def running_sink(directory: Path, *options: str) -> Iterator[tuple[Program, int]]:
    """A sink that accepts, and its port; stopped at the end."""
    port = free_port([ADDRESS])
    sink = Program("sink", [*LOAD.sink, "-a", ADDRESS, "-p", str(port), "-X", "30", *options], directory)
    try:
        sink.wait_ready()
        yield sink, port
    finally:
        sink.stop()


@contextmanager
def running_nameserver(directory: Path, *options: str) -> Iterator[tuple[Program, int]]:
    """A name server that answers, and its port; stopped at the end."""
    server = Program("nameserver", [sys.executable, "-m", "bench.nameserver", *options], directory)
    try:
        yield server, int(server.wait_ready().rpartition(":")[2])
    finally:
        server.stop()


def run_source(directory: Path, port: int, *options: str) -> Program:
    """A source that has sent everything to the sink at `port`."""
    source = Program("source", [*LOAD.source, "-a", f"{ADDRESS}:{port}", "-T", "20", *options], directory)
    source.wait(30)
    return source
