"""What to try next, as lines to copy."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator

from mta.demo.instance import Instance
from mta.demo.internet import Internet
from mta.demo.terminal import Terminal
from mta.sandbox.client import Sandbox


def next_steps(terminal: Terminal) -> Iterator[str]:
    """After a demo that is over."""
    mta = command()
    yield terminal.paint("What to try next", "bold")
    yield from _lines(terminal, [
        (f"{mta} demo --keep", "it stays up: send mail, look at it, break things"),
        (f"{mta} demo --messages 20000", "more of it; also --workers, --seed, --json"),
        (f"{mta} --help", "all commands; docs/demo.md explains this one"),
    ])


def kept(terminal: Terminal, instance: Instance, sandbox: Sandbox, internet: Internet) -> Iterator[str]:
    """While it keeps running."""
    # Absolute paths: the other terminal may be elsewhere.
    mta, config = command(nearby=False), shlex.quote(str(instance.config_path))
    stats = shlex.quote(sandbox.control.where)
    sender = "you@harborcoffee.example"
    small, grey = internet.domains["small"][0], internet.domains["grey"][0]
    yield terminal.paint("It keeps running until Ctrl-C. In another terminal:", "bold")
    for title, commands in (
        ("send", [f"swaks --server {instance.smtp} --from {sender} --to ada@{small}",
                  f"{mta} send --server {instance.smtp} --from {sender} --to ada@{grey} --subject Hi --text Hello"]),
        ("look", [f"{mta} status -c {config}", f"{mta} queue -c {config}", f"{mta} events --follow -c {config}",
                  f"{mta} sandbox log --stats {stats} | tail"]),
        ("break", [f"{mta} sandbox set {small} '{{\"listening\": false}}' --stats {stats}",
                   f"{mta} sandbox set {small} small --stats {stats}"]),
    ):
        yield ""
        yield terminal.paint(title, "bold")
        # Never folded, so that they can be copied.
        yield from (f"  {line}" for line in commands)


def _lines(terminal: Terminal, commands: list[tuple[str, str]]) -> Iterator[str]:
    """Commands and what they are for, side by side where there is room."""
    left = max(len(line) for line, _ in commands) + 4
    if left + max(len(what) for _, what in commands) < terminal.width:
        yield from (f"  {line:<{left}}{what}" for line, what in commands)
    else:
        for line, what in commands:
            yield f"  {line}"
            yield terminal.paint(f"      {what}", "dim")


def command(nearby: bool = True) -> str:
    """How `mta` was called; `nearby`: it is called from this directory again."""
    called = sys.argv[0]
    name = os.path.basename(called)
    if name == "__main__.py":
        return f"{os.path.basename(sys.executable) if nearby else shlex.quote(sys.executable)} -m mta"
    found = shutil.which(name)
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return name
    path = os.path.abspath(called)
    nearer = os.path.relpath(path)
    return shlex.quote(nearer if nearby and not nearer.startswith("..") else path)
