"""Runs one target under atheris, in a process of its own: `python -m tests.fuzz.guided TARGET LIBFUZZER-OPTION...`."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Final

import atheris

_ROOT: Final = Path(__file__).parents[2]
_FILES: Final = ("mta.inject.formats", "mta.inject.batch", "mta.inject.addresses", "mta.message.headers",
                 "mta.smtp.address", "mta.smtp.envelope")  # fmt: skip
_QUEUE: Final = ("mta.queue.transaction", "mta.queue.encoding", "mta.queue.journal", "mta.queue.effects")
CODE: Final = {
    "server": ("mta.smtp.server", "mta.smtp.conversation", "mta.smtp.identifying", "mta.smtp.order",
               "mta.smtp.receiving", "mta.smtp.data", "mta.smtp.login", "mta.smtp.xclient"),
    "client": ("mta.smtp.client", "mta.smtp.transaction", "mta.delivery.outcome"),
    "replies": ("mta.smtp.reply", "mta.smtp.transaction"), "path": ("mta.smtp.address",), "xtext": ("mta.smtp.xtext",),
    "mailboxes": ("mta.inject.addresses", "mta.message.checks", "mta.smtp.address"),
    "parameters": ("mta.smtp.envelope", "mta.smtp.xtext", "mta.smtp.transaction"), "stuffing": ("mta.smtp.data",),
    "header": ("mta.message",), "message": _FILES,
    "intake": ("mta.inject.intake", "mta.inject.labels", "mta.inject.checking", "mta.message"),
    "batch": _FILES, "sendmail": ("mta.sendmail", *_FILES), "options": ("mta.sendmail.options",),
    "proxy": ("mta.inject.proxyheader",), "xclient": ("mta.smtp.xclient", "mta.smtp.xtext"), "sasl": ("mta.smtp.sasl",),
    "users": ("mta.access.users", "mta.access.passwords"), "frame": _QUEUE, "operations": _QUEUE, "records": _QUEUE,
    "dns": ("mta.delivery.dns",), "notices": ("mta.message",), "filter": ("mta.queue.filter",),
    "control": ("mta.control.channel", "mta.control.protocol"), "config": ("mta.config",),
    "repetition": ("mta.smtp", "mta.inject.addresses", "mta.inject.formats", "mta.message", "mta.sendmail",
                   "mta.queue.filter"),
    "units": ("mta.config.units", "mta.config.hosts", "mta.config.forms", "mta.config.reply_patterns"),
}  # fmt: skip
"""The code that a target is about, by the beginnings of module names: it alone is watched, as that makes it slow."""


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    logging.disable()
    name, *options = sys.argv[1:]
    modules = [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in (_ROOT / "mta").rglob("*.py")]
    others = [module for module in modules if not module.startswith(CODE[name])]
    # Before anybody else imports it. By itself atheris tells packages apart, not modules.
    with atheris.instrument_imports(include=["mta"], exclude=others, enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    # To merge, libFuzzer starts itself again by a shell, with what it is called.
    ourselves = shlex.join((sys.executable, "-m", "tests.fuzz.guided", name))
    atheris.Setup([ourselves, *options], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
