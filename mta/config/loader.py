"""A configuration file to `Config`, or to every problem in it at once.

Whatever the file or text, only `ConfigError` is raised. The steps: bytes to text here, text to a tree with places
(`mta.config.tree`), tree to dataclasses (`mta.config.build`), contradictions between options (`mta.config.rules`).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from mta.config import rules, tree
from mta.config.build import Builder, TooManyProblems
from mta.config.problems import ConfigError, OptionPath, Problem, path_text
from mta.config.schema import Config

__all__ = ["ConfigError", "Problem", "Reading", "check", "load", "loads", "read", "read_text"]


@dataclass(slots=True)
class Reading:
    """What was read from one file. `config` is None when there are problems."""

    file: str
    config: Config | None
    problems: list[Problem]
    given: dict[OptionPath, tuple[int, int]]  # line and column of what the file sets itself


def load(path: str) -> Config:
    """The configuration in the file `path`. Raises ConfigError with all problems."""
    return _config(read(path))


def loads(text: str, name: str = "<text>") -> Config:
    """The configuration in `text`; `name` stands for the file in messages. Raises ConfigError with all problems."""
    return _config(read_text(text, name))


def check(path: str) -> tuple[Config | None, list[Problem]]:
    """The configuration in the file `path` and its problems; one of the two is empty. Raises nothing."""
    reading = read(path)
    return reading.config, reading.problems


def read(path: str) -> Reading:
    """Like `check`, with the places where options are set."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(tree.MAX_BYTES + 1)
    except FileNotFoundError:
        return _unreadable(path, "there is no such file")
    except IsADirectoryError:
        return _unreadable(path, "is a directory, expected a file")
    except (OSError, ValueError) as error:
        return _unreadable(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if os.geteuid() == 0 and stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWOTH:
        return _unreadable(path, "anybody may write to it and root would obey it, expected mode 0644 or less")
    if len(data) > tree.MAX_BYTES:
        return _unreadable(path, f"larger than {tree.MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = tree.position(before, len(before))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8, expected a file in UTF-8"
        return Reading(path, None, [Problem(path, line, column, message)], {})
    return read_text(text, path)


def read_text(text: str, name: str = "<text>") -> Reading:
    """Like `read`, of text. Relative directories are taken from where `name` lies."""
    builder = Builder(name)
    config: Config | None = None
    try:
        root = tree.parse(text, builder.report)
        if root is None and not builder.problems:
            root = tree.Mapping(1, 1)  # an empty file lacks what is required
        if root is not None:
            config = builder.config(root)
        if config is not None:
            for path, message in rules.contradictions(config, builder.given, builder.faulty):
                builder.report(*_place(builder.given, path), f"{path_text(path)}: {message}")
    except TooManyProblems:
        pass
    problems = sorted(set(builder.problems), key=lambda problem: problem[1:])
    return Reading(name, None if problems else config, problems, builder.given)


def _place(given: dict[OptionPath, tuple[int, int]], path: OptionPath) -> tuple[int, int]:
    """Where `path` is set, or the nearest thing around it."""
    while path and path not in given:
        path = path[:-1]
    return given.get(path, (1, 1))


def _config(reading: Reading) -> Config:
    if reading.config is None:
        raise ConfigError(reading.problems)
    return reading.config


def _unreadable(path: str, message: str) -> Reading:
    return Reading(path, None, [Problem(path, 0, 0, message)], {})
