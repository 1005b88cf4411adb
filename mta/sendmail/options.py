"""The command line of sendmail, as Postfix's `sendmail` reads it.

Options may be written together with their value or apart (`-fME`, `-f ME`) and end at the first recipient or at `--`.
What had a meaning in Sendmail and has none here is accepted and ignored, because programs say it from habit. What is
not known is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mta.control import exits
from mta.queue.records import NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER, NOTIFY_SUCCESS
from mta.smtp import xtext
from mta.smtp.envelope import ENVID_LIMIT

SEND: Final = "send"
SMTP: Final = "smtp"
QUEUE: Final = "queue"
ALIASES: Final = "aliases"
FLUSH: Final = "flush"

_WITH_VALUE: Final = "ABCFLNORVXbefhopr"
_ALONE: Final = "GIUcimntvx"
_MODES: Final = {"m": SEND, "s": SMTP, "p": QUEUE, "i": ALIASES}
_NOTIFY: Final = {"success": NOTIFY_SUCCESS, "failure": NOTIFY_FAILURE, "delay": NOTIFY_DELAY}


class UsageError(exits.OperatorError):
    """The command line is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__(exits.USAGE, text)


@dataclass(slots=True)
class Options:
    """What the command line says."""

    mode: str = SEND
    sender: str | None = None  # -f, -r; as written
    full_name: str | None = None  # -F
    from_header: bool = False  # -t: recipients are in the header, too
    dots_are_text: bool = False  # -i: a line with nothing but a dot does not end the message
    verbose: bool = False
    notify: int = 0
    ret: str = ""
    envid: str | None = None  # in xtext
    config: str | None = None
    recipients: list[str] = field(default_factory=list)


def parse(program: str, arguments: Sequence[str]) -> Options:
    """Read a command line; `program` is the name that we were called by. Raises UsageError."""
    options = Options()
    name = os.path.basename(program)
    if name.startswith("mailq"):
        options.mode = QUEUE
    elif name.startswith("newaliases"):
        options.mode = ALIASES
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            raise UsageError(f"there is no option {argument[:60]!r}; `--` alone ends the options")
        _cluster(options, argument[1:], rest)
    options.recipients = rest
    return options


def _cluster(options: Options, letters: str, rest: list[str]) -> None:
    """Read `-tif ME`: options without value, and perhaps a last one with."""
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter in "qd":  # a value, if there is one, is part of the same argument: -q15m, -d0.1
            if letter == "q":
                options.mode = FLUSH
            return
        if letter in _WITH_VALUE:
            if not letters and not rest:
                raise UsageError(f"-{letter} needs a value")
            _valued(options, letter, letters or rest.pop(0))
            return
        if letter not in _ALONE:
            raise UsageError(f"there is no option -{letter}")
        if letter == "t":
            options.from_header = True
        elif letter == "i":
            options.dots_are_text = True
        elif letter == "v":
            options.verbose = True
        elif letter == "I":
            options.mode = ALIASES


def _valued(options: Options, letter: str, value: str) -> None:
    if letter in "fr":
        options.sender = value
    elif letter == "F":
        options.full_name = value
    elif letter == "C":
        options.config = value
    elif letter == "b":
        if value == "d" or value == "D":
            raise UsageError("-bd: this command starts no server; `mta run` does, or its systemd unit")
        if value not in _MODES:
            raise UsageError(f"-b{value[:20]} is not supported; there are -bm, -bs, -bp and -bi")
        options.mode = _MODES[value]
    elif letter == "o":
        if value == "i":
            options.dots_are_text = True
    elif letter == "O":
        if value.lower().replace(" ", "") in ("ignoredots", "ignoredots=true"):
            options.dots_are_text = True
    elif letter == "N":
        options.notify = _notify(value)
    elif letter == "R":
        if value.lower() not in ("hdrs", "full"):
            raise UsageError(f"-R {value[:20]}: expected hdrs or full")
        options.ret = value.upper()
    elif letter == "V":
        options.envid = _envid(value)


def _notify(value: str) -> int:
    if value.lower() == "never":
        return NOTIFY_NEVER
    notify = 0
    for word in value.lower().split(","):
        if word.strip() not in _NOTIFY:
            raise UsageError(f"-N {value[:40]}: expected never, or a list of success, failure and delay")
        notify |= _NOTIFY[word.strip()]
    return notify


def _envid(value: str) -> str:
    if value and value.isascii() and value.isprintable() and len(xtext.encode(value)) <= ENVID_LIMIT:
        return xtext.encode(value)
    raise UsageError(f"-V: expected 1 to {ENVID_LIMIT} printable ASCII characters")
