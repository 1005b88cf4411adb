"""The page of all commands, `docs/cli.md`, out of their own help: `python -m mta.cli.reference > docs/cli.md`."""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterator

from mta.cli import COMMANDS, build_parser
from mta.sandbox.client import default_control

_REMARK = re.compile(r"( {3,})(?=\S)")  # after an example, what it is for

_HEAD = """\
# The `mta` command

    mta COMMAND [OPTION ...] [ARGUMENT ...]
    mta --version
    mta --help
    mta COMMAND --help

One program with a command for each task. `status`, `queue`, `message` and those that give orders (`pause` to `orders`)
talk to the running MTA over its control socket; `events` reads the event files and works without it; `spool` works on
the files of one that is stopped. Text that came from remote hosts is printed with control characters as escapes. Tables
fit the terminal; into a pipe or a file nothing is cut off. Where there is `--json`, it prints one JSON object
(listings: one per line); times are microseconds since the epoch unless they are text (RFC 3339), and later versions may
add fields.

This page is made from the commands' own `--help`.

## Environment

| variable | meaning |
|---|---|
| `MTA_CONFIG` | configuration file, where no `-c` names one; without it `/etc/mta/mta.yaml` |
| `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `LISTEN_FDS` | of systemd, see [operations.md](operations.md) |

## Files

| path | what |
|---|---|
| `/etc/mta/mta.yaml` | configuration, see [configuration.md](configuration.md) |
| `SPOOL/shards/NNN/` | the queue; `events/` in it has the [events](events.md); for root and the MTA's user |
| `SPOOL/operator/orders` | what operators ordered and is in force |
| `RUN/control.sock` | where `status`, `queue`, `message` and orders go; for root, the MTA's user and its group |

## Exit codes

| code | name | meaning |
|---|---|---|
| 0 | | done |
| 1 | damaged | `mta spool verify` found something that is not as it should be |
| 64 | usage | the command line is wrong, or what it asks for makes no sense, as an unknown pool |
| 65 | data | the input is wrong: a message refused for good, a spool of a newer version |
| 66 | no input | what was asked for is not there: a file, a queue, a message |
| 67 | no user | the user to run as does not exist |
| 69 | unavailable | the MTA is not running or does not answer, a port is taken, a host cannot be reached |
| 70 | software | a bug of ours; the traceback is on stderr |
| 71 | system | the system refused something that should work; something stored is damaged |
| 73 | cannot create | spool or runtime directory cannot be made or written; then nothing was ordered |
| 75 | temporary | try again later: another instance runs, an answer is incomplete, a message was refused for now |
| 77 | no permission | not allowed: a port below 1024, a socket, a change of user |
| 78 | configuration | the configuration has errors; they were printed |
| 130 | interrupted | stopped by Ctrl-C |

## Commands
"""


def markdown() -> str:
    """The whole page."""
    (commands,) = _verbs(build_parser(COMMANDS))
    lines = [_HEAD]
    lines += [f"- [`mta {name}`](#mta-{name}): {summary}" for name, summary in _summaries(commands)]
    for name, parser in commands.choices.items():
        lines += ["", *_section(f"mta {name}", parser, "##")]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return text.replace(default_control(), "/tmp/mta-sandbox-UID.sock") + "\n"


def _section(name: str, parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    verbs = _verbs(parser)
    arguments = [action for action in parser._actions if not _is_verbs(action) and action.dest != "help"]
    yield from (f"{level} {name}", "", *_synopsis(name, arguments, bool(verbs)), "")
    yield from _prose(parser.description or "")
    if arguments:
        yield from ("", "| option | meaning |", "|---|---|")
        # Optional ones first, as in the synopsis.
        for action in sorted(arguments, key=lambda action: not action.option_strings):
            help_text = (action.help or "") % {"default": action.default, "prog": parser.prog}
            yield f"| {_forms(action)} | {help_text.replace('|', chr(92) + '|')} |"
    examples = (parser.epilog or "").partition("examples:\n")[2]
    if examples:
        lines = (_REMARK.sub(r"\1# ", line.removeprefix("  ")) for line in examples.rstrip().split("\n"))
        yield from ("", "```sh", *lines, "```")
    for verb in verbs:
        for word, nested in verb.choices.items():
            yield ""
            yield from _section(f"{name} {word}", nested, f"{level}#")


def _synopsis(name: str, arguments: list[argparse.Action], has_verbs: bool) -> list[str]:
    words = [name]
    for action in sorted(arguments, key=lambda action: not action.option_strings):
        if action.option_strings:
            word = " ".join([action.option_strings[0], *_value(action)])
            words.append(word if action.required else f"[{word}]")
        else:
            word = _value(action)[0]
            words.append({"?": f"[{word}]", "*": f"[{word} ...]", "+": f"{word} ..."}.get(str(action.nargs), word))
    text = " ".join([*words, *(["[VERB ...]"] if has_verbs else [])])
    # An option stays with its value where the line is broken.
    glued = text.replace(" [", "\n[").replace(" --", "\n--").replace(" ", "\0").replace("\n", " ")
    indent = " " * (len(name) + 5)
    return [
        line.replace("\0", " ")
        for line in textwrap.wrap(glued, 110, initial_indent="    ", subsequent_indent=indent, break_long_words=False,
                                  break_on_hyphens=False)
    ]  # fmt: skip


def _forms(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_value(action)[0]}`"
    return ", ".join(f"`{' '.join([option, *_value(action)])}`" for option in action.option_strings)


def _value(action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return []
    if isinstance(action.metavar, str):
        return [action.metavar]
    return ["{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()]


def _prose(text: str) -> Iterator[str]:
    """Paragraphs as they are, indented lines as a block."""
    for indented, lines in itertools.groupby(text.split("\n"), key=lambda line: line.startswith("  ")):
        if indented:
            yield from ("", *(f"  {line}" for line in lines), "")
        else:
            yield from "\n".join(lines).strip("\n").split("\n")


def _summaries(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[tuple[str, str]]:
    return [(choice.dest, choice.help or "") for choice in commands._choices_actions]


def _verbs(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[argparse.ArgumentParser]]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _is_verbs(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


if __name__ == "__main__":
    print(markdown(), end="")
