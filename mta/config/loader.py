"""A configuration file to `Config`, or to every problem in it at once.

Whatever the file or text, only `ConfigError` is raised. The steps: bytes to text (`mta.config.textfile`), text to a
tree with places (`mta.config.tree`), tree to dataclasses (`mta.config.build`), the same for the file of providers that
it names, contradictions between options (`mta.config.rules`, `mta.config.shaping_rules`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass

from mta.config import rules, shaping_rules, tree
from mta.config.build import Builder, TooManyProblems
from mta.config.problems import ConfigError, OptionPath, Problem, path_text, printable
from mta.config.providers import definitions
from mta.config.reply_book import ReplyRules, provider_problems, read_file, sample_problems
from mta.config.reply_rules import ReplyRule
from mta.config.schema import Config
from mta.config.shaping import DestinationRules, Layer, Place
from mta.config.textfile import file_text

SHIPPED_PROVIDERS = os.path.realpath(os.path.join(os.path.dirname(__file__), "providers.yaml"))

SHIPPED_RULES = os.path.realpath(os.path.join(os.path.dirname(__file__), "rules.yaml"))

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
    text, problem = file_text(path)
    return Reading(path, None, [problem], {}) if problem is not None else read_text(text, path)


def read_text(text: str, name: str = "<text>") -> Reading:
    """Like `read`, of text. Relative directories are taken from where `name` lies."""
    builder = Builder(name)
    config: Config | None = None
    others: list[Problem] = []
    try:
        root = tree.parse(text, builder.report)
        if root is None and not builder.problems:
            root = tree.Mapping(1, 1)  # an empty file lacks what is required
        if root is not None:
            config = builder.config(root)
        if config is not None:
            config, others = _with_providers(config, builder)
            config, more = _with_rules(config, builder)
            others = [*others, *more]
            _report(builder, rules.contradictions(config, builder.given, builder.faulty))
    except TooManyProblems:
        pass
    problems = sorted(set(builder.problems), key=lambda problem: problem[1:]) + others
    return Reading(name, None if problems else config, problems, builder.given)


def _report(builder: Builder, findings: Iterable[rules.Finding]) -> None:
    for path, message in findings:
        builder.report(*_place(builder.given, path), f"{path_text(path)}: {message}")


def _with_providers(config: Config, builder: Builder) -> tuple[Config, list[Problem]]:
    """`config` with what its file of providers says, and the problems of that file."""
    places = {".".join(map(str, path)): Place(builder.file, place[0]) for path, place in builder.given.items()
              if path[0] in ("retry", "expires")}
    found = DestinationRules()
    problems: list[Problem] = []
    if ("providers",) in builder.faulty:
        builder.faulty.add(("shaping", "providers"))  # whether they exist cannot be said
    elif config.providers == "shipped":
        found, problems = _shipped_providers()
    elif config.providers != "none":
        text, problem = file_text(config.providers)
        if problem is None:
            found, problems = read_providers(text, config.providers)
        elif problem.line:
            problems = [problem]
        else:
            _report(builder, [(("providers",), f"{printable(config.providers)}: {problem.message}")])
        if problem is not None or problems:
            builder.faulty.add(("providers",))
    shaping = dataclasses.replace(config.shaping, shipped=found, top=Layer({}, places))
    return dataclasses.replace(config, shaping=shaping), problems


@functools.cache
def _shipped_providers() -> tuple[DestinationRules, list[Problem]]:
    text, problem = file_text(SHIPPED_PROVIDERS)
    assert problem is None, problem
    return read_providers(text, SHIPPED_PROVIDERS)


def read_providers(text: str, name: str) -> tuple[DestinationRules, list[Problem]]:
    """What a file of providers says, and its problems. What is faulty is left out."""
    builder = Builder(name)
    found = DestinationRules()
    try:
        root = tree.parse(text, builder.report)
        if root is not None:
            found = builder.destination_rules(root)
            _report(builder, shaping_rules.in_file(found, builder.faulty))
    except TooManyProblems:
        pass
    return found, sorted(set(builder.problems), key=lambda problem: problem[1:])


def _with_rules(config: Config, builder: Builder) -> tuple[Config, list[Problem]]:
    """`config` with the rules on replies of the file that it names, and what is wrong with these. Runs all samples."""
    own = config.rules.own
    shipped: tuple[ReplyRule, ...] = ()
    problems: list[Problem] = []
    if config.rules_file == "shipped":
        shipped, problems = _shipped_rules()
    elif config.rules_file != "none":
        text, problem = file_text(config.rules_file)
        if problem is None:
            shipped, problems = read_file(text, config.rules_file)
        elif problem.line:
            problems = [problem]
        else:
            _report(builder, [(("rules_file",), f"{printable(config.rules_file)}: {problem.message}")])
    found = ReplyRules(own, shipped)
    found_problems = list(sample_problems(own, found))
    if not {("providers",), ("shaping", "providers")} & builder.faulty:
        providers = definitions(config.shaping)
        found_problems += provider_problems(own, providers)
        if config.rules_file != "shipped":  # else they fit the shipped providers, of which another file may know fewer
            problems = [*problems, *provider_problems(shipped, providers)]
    for problem in found_problems:
        builder.report(problem.line, problem.column, problem.message)
    return dataclasses.replace(config, rules=found), problems


@functools.cache
def _shipped_rules() -> tuple[tuple[ReplyRule, ...], list[Problem]]:
    text, problem = file_text(SHIPPED_RULES)
    assert problem is None, problem
    return read_file(text, SHIPPED_RULES)


def _place(given: dict[OptionPath, tuple[int, int]], path: OptionPath) -> tuple[int, int]:
    """Where `path` is set, or the nearest thing around it."""
    while path and path not in given:
        path = path[:-1]
    return given.get(path, (1, 1))


def _config(reading: Reading) -> Config:
    if reading.config is None:
        raise ConfigError(reading.problems)
    return reading.config
