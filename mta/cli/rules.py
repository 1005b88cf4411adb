"""`mta rules`: the rules on replies, and what they make of a reply."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, get_args

from mta.cli.options import add_config, add_json, add_parser
from mta.cli.text import Column, print_table
from mta.config.loader import load
from mta.config.problems import ConfigError, printable
from mta.config.providers import definitions
from mta.config.reply_classes import CLASSES, DECISIONS
from mta.config.reply_patterns import parse_reply
from mta.config.reply_rules import FATES, SCOPES, ReplyRule, Stage
from mta.config.schema import Config
from mta.config.units import format_duration
from mta.control import exits
from mta.delivery.rules import Ruling, ruling_on

_EXAMPLES = """\
  mta rules list --provider google
  mta rules list --class blocklist --json | jq -r '.[].rule'
  mta rules show google-rate
  mta rules test "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent (S3150)" --provider microsoft
  mta rules classes"""

_LIST = """\
Print the rules in the order in which they are asked, your own first: name, class, what happens to the message and what
is done. The first that fits a reply decides."""

_SHOW = """\
Print one rule as it is written, with its place."""

_TEST = """\
Say which rule takes a reply, what it means, and what would happen. The reply is written as the host sends it, with its
code; of several lines each with the code. Without a rule the codes of the reply decide.

exit codes:
  0   a rule takes it
  1   none does: the codes decide"""

_CLASSES = """\
Print the classes of replies: what each means, and whom it blames."""


_COLUMNS = (Column("RULE"), Column("PROVIDER"), Column("CLASS"), Column("WHAT IS DONE", shrinks=True))


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs."""
    parser = add_parser(commands, "rules", "show and try the rules on replies",
                        "Show the rules on replies, and what they make of a reply.", _EXAMPLES)
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)

    list_ = add_parser(verbs, "list", "print the rules", _LIST, "  mta rules list --provider yahoo")
    add_config(list_)
    list_.add_argument("--provider", help="only those that are asked for this provider")
    list_.add_argument("--class", dest="kind", choices=list(CLASSES), metavar="CLASS", help="only those of this class")
    add_json(list_, "one JSON array of objects: rule, file, line, class, decision, message, wait_s, actions, after")
    list_.set_defaults(run=run_list)

    show = add_parser(verbs, "show", "print one rule", _SHOW, "  mta rules show yahoo-volume")
    show.add_argument("name", metavar="NAME", help="name of the rule")
    add_config(show)
    show.set_defaults(run=run_show)

    test = add_parser(verbs, "test", "say what becomes of a reply", _TEST,
                      '  mta rules test "451 4.7.1 Greylisted" --stage rcpt')
    test.add_argument("reply", metavar="REPLY", help="a whole reply, as in \"550 5.1.1 No such user\"")
    add_config(test)
    test.add_argument("--provider", default="", help="whose host says it; none unless given")
    test.add_argument("--stage", choices=get_args(Stage), default="rcpt", help="what it answers; rcpt unless given")
    add_json(test, "one JSON object: class, decision, rule, file, line, message, wait_s, actions, after")
    test.set_defaults(run=run_test)

    classes = add_parser(verbs, "classes", "print the classes of replies", _CLASSES, "  mta rules classes")
    classes.set_defaults(run=run_classes)


def _config(options: argparse.Namespace) -> Config | None:
    try:
        config = load(options.config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return None
    provider = getattr(options, "provider", None)
    if provider and provider not in definitions(config.shaping):
        raise exits.OperatorError(
            exits.USAGE, f"there is no provider {printable(provider)}; `mta shaping list` shows them")
    return config


def run_list(options: argparse.Namespace) -> int:
    """Print the rules."""
    config = _config(options)
    if config is None:
        return exits.CONFIG
    rules = [
        rule for rule in config.rules.all()
        if (options.provider is None or not rule.providers or options.provider in rule.providers)
        and (options.kind is None or rule.kind == options.kind)
    ]
    if options.json:
        print(json.dumps([_facts(rule.kind, rule)  for rule in rules]))
        return exits.OK
    print_table(_COLUMNS, ([rule.name, ", ".join(rule.providers) or "any", rule.kind, "; ".join(_consequences(rule))]
                           for rule in rules))
    return exits.OK


def run_show(options: argparse.Namespace) -> int:
    """Print one rule."""
    config = _config(options)
    if config is None:
        return exits.CONFIG
    rule = next((rule for rule in config.rules.all() if rule.name == options.name), None)
    if rule is None:
        raise exits.OperatorError(exits.USAGE, f"there is no rule {printable(options.name)}")
    print(f"# {rule.place}")
    for option, value in rule.written:
        if isinstance(value, list):
            print(f"{option}:")
            for item in value:
                print(f"  - {json.dumps(item, ensure_ascii=False)}")
        else:
            print(f"{option}: {json.dumps(value, ensure_ascii=False) if option in ('text', 'unless') else value}")
    return exits.OK


def run_test(options: argparse.Namespace) -> int:
    """Say what becomes of a reply."""
    try:
        reply = parse_reply(options.reply)
    except ValueError as error:
        raise exits.OperatorError(exits.USAGE, f"{printable(options.reply, 80)}: {error}") from None
    config = _config(options)
    if config is None:
        return exits.CONFIG
    rule = config.rules.find(options.provider, options.stage, reply)
    ruling = ruling_on(rule, reply, options.stage)
    if options.json:
        print(json.dumps(_facts(ruling.kind, rule)))
    else:
        for subject, text in _story(ruling, reply.code):
            print(f"{subject:10}{text}")
    return exits.OK if rule is not None else 1


def run_classes(options: argparse.Namespace) -> int:
    """Print the classes."""
    for decision, doc in DECISIONS.items():
        print(f"{decision}: {doc}")
        for one in CLASSES.values():
            if one.decision == decision:
                print(f"  {one.name:18} {one.doc}")
    return exits.OK


def _story(ruling: Ruling, code: int) -> list[tuple[str, str]]:
    rule = ruling.rule
    lines = [("rule", f"{rule.name}, {rule.place}" if rule is not None else "none: the codes of the reply decide"),
             ("class", f"{ruling.kind}: {CLASSES[ruling.kind].doc}"),
             ("blame", f"{ruling.decision}: {DECISIONS[ruling.decision]}")]
    if ruling.message:
        wait = f", for {format_duration(ruling.wait_s)}" if ruling.wait_s else ""
        lines.append(("message", f"{ruling.message}{wait}: {FATES[ruling.message].partition(';')[0]}"))
    else:
        lines.append(("message", "fails for good, by its code" if code >= 500 else "waits by the retry schedule"))
    if ruling.suppresses(code):
        lines.append(("recipient", "is to get no more mail"))
    if rule is not None:
        for action in rule.actions:
            begin = f", after {rule.after}" if rule.after is not None else ""
            scope = f" ({SCOPES[action.scope]})" if action.kind != "alarm" else ""
            lines.append(("action", f"{action}{scope}{begin}"))
    return lines


def _consequences(rule: ReplyRule) -> list[str]:
    message = rule.message + (f" for {format_duration(rule.wait_s)}" if rule.wait_s else "")
    actions = ", ".join(map(str, rule.actions))
    if rule.after is not None:
        actions += f" after {rule.after}"
    return [text for text in (message, actions) if text]


def _facts(kind: str, rule: ReplyRule | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"class": kind, "decision": CLASSES[kind].decision if kind else ""}
    if rule is None:
        return facts | {"rule": "", "file": "", "line": 0, "message": "", "wait_s": 0.0, "actions": [], "after": ""}
    return facts | {
        "rule": rule.name, "file": rule.file, "line": rule.line, "message": rule.message,
        "wait_s": rule.wait_s, "actions": list(map(str, rule.actions)), "after": str(rule.after or ""),
    }
