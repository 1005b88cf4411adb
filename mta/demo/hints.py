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
    yield f"  {mta} demo --keep              stays up: send mail of your own, look at it, break things"
    yield f"  {mta} demo --messages 20000    more of it; also --workers, --seed, --json"
    yield f"  {mta} --help                   all commands; docs/demo.md tells what you have just seen"


def kept(terminal: Terminal, instance: Instance, sandbox: Sandbox, internet: Internet) -> Iterator[str]:
    """While it keeps running."""
    mta, config = command(), shlex.quote(str(instance.config_path))
    stats = shlex.quote(sandbox.control.where)
    sender, recipient = "you@harborcoffee.example", f"ada@{internet.domains['small'][0]}"
    grey = internet.domains["grey"][0]
    yield terminal.paint("It keeps running until Ctrl-C. In another terminal:", "bold")
    yield ""
    yield "send"
    yield f"  swaks --server {instance.smtp} --from {sender} --to {recipient}"
    yield f"  {mta} send --server {instance.smtp} --from {sender} --to ada@{grey} --subject Hello --text Hi"
    yield "look"
    yield f"  {mta} status -c {config}"
    yield f"  {mta} queue -c {config}"
    yield f"  {mta} events --follow -c {config}"
    yield f"  {mta} sandbox domains --stats {stats}"
    yield "break"
    yield f"  {mta} sandbox set mx.officehost.example '{{\"listening\": false}}' --stats {stats}"
    yield f"  tail -f {shlex.quote(str(instance.directory / 'mta.log'))}"


def command() -> str:
    """How `mta` was called."""
    called = sys.argv[0]
    name = os.path.basename(called)
    if name == "__main__.py":
        return f"{os.path.basename(sys.executable)} -m mta"
    found = shutil.which(name)
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return name
    return shlex.quote(called)
