"""The reference of all options as Markdown, made from the schema. `docs/configuration.md` is kept equal by a test."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from mta.config.describe import Option, options_of, own_options_of, section_of, type_text, without_none, written
from mta.config.kinds import KINDS
from mta.config.reply_book import ReplyRules
from mta.config.schema import Config
from mta.config.units import Duration, Size

_WIDTH = 118
_AT_THE_TOP = [section_of(option.type) for option in options_of(Config).values()]

_INTRODUCTION = """\
# Configuration

<!-- Made by `mta config reference` from mta/config/schema.py. Change the schema, then make it again. -->

One YAML file, `/etc/mta/mta.yaml` unless `-c FILE` or `MTA_CONFIG` names another. `conf/minimal.yaml` is a small one,
`conf/mta.yaml` shows every option. Only `hostname` has to be given.

    mta check -c FILE                    # every problem at once, as file:line:column, or what would run
    mta config show -c FILE              # every option with its value and where that comes from
    mta shaping show -c FILE DOMAIN      # what holds for mail to one domain, and where each value comes from
    mta config diff OLD NEW              # what a change means, and whether it needs a restart

## How values are written

- **The option decides how its text is read**, quotes never matter: `tls: off` is the word off, `pipelining: off` is
  false, `factor: 1.10` is a number. Quotes are needed where YAML itself needs them, as in `"*"` and `"[::1]:25"`.
- **Durations**: `500ms`, `30s`, `10m`, `4h`, `5d`, `2w`, also `1h30m` and `1.5h`. **Sizes**: `512B`, `64KB`, `25MB`,
  `10GB` (decimal) or `64KiB`, `2GiB` (binary). **Rates**: `100/s`, `0.5/s`, `50/min`, `1,000/h`, `100/30s`, and
  `"100/min, burst 20"` when so many may go at once. The unit has to be written; only `0` needs none. Durations and
  sizes are above zero unless said otherwise.
- **Whole numbers**: `20000` or `20_000`. **Truth**: `true`, `yes`, `on` and `false`, `no`, `off`.
- **Addresses**: `127.0.0.1:25`, `"[::1]:25"`. **Networks**: `10.0.0.0/8`, `2001:db8::/32`, or one address.
- **Domains**: case does not matter, international names may be written as such (`bücher.example`), an address literal
  in any spelling (`"[IPv6:2001:db8::1]"`). In a pattern of hosts a label with a `*` in it is ASCII.
- **Directories**: relative ones are taken from the directory of the configuration file, `~/` is the home directory.
- **Lists** of one may be written without brackets. An option without a value (`smtp:`) is an empty section or list.
- A name given twice, an unknown option, a value that fits nothing and options that contradict each other are errors.
  Anchors, aliases and `<<` work; tags and a second document do not.

Shaping is in layers: an option that a more specific section does not set is as the less specific one says, and `~`
unsets it; [shaping.md](shaping.md) has the order.

`mta run` reads the file when it starts and on SIGHUP. A file with a problem changes nothing. Options marked *restart*
keep their value until the MTA is started anew; on a list it means that its items stay as many as they are.
"""


def markdown() -> str:
    """The whole reference."""
    parts = [_INTRODUCTION]
    for title, section, options in _sections():
        parts.append(f"## {title}\n\n{_filled(_summary(section), '')}\n")
        parts.append("\n".join(_entry(option) for option in options) + "\n")
    return "\n".join(parts)


def _sections() -> Iterator[tuple[str, Any, list[Option]]]:
    """Title, class and options of each section, those of the top level first."""
    yield "Top level", Config, list(options_of(Config).values())
    done: list[Any] = [Config]
    yield from _inner_sections(Config, "", done)


def _inner_sections(section: Any, path: str, done: list[Any]) -> Iterator[tuple[str, Any, list[Option]]]:
    for name, option in own_options_of(section).items():
        inner = section_of(option.type)
        if inner is None or inner in done or (path and inner in _AT_THE_TOP):
            continue
        done.append(inner)
        origin = get_origin(option.type)
        key = type_text(get_args(option.type)[0]).upper() if origin is dict else ""
        here = path + name + ("[]" if origin is tuple else f"[{key.partition(' ')[0]}]" if key else "")
        yield f"`{here}`", inner, list(own_options_of(inner).values())
        yield from _inner_sections(inner, f"{here}.", done)


def _summary(section: Any) -> str:
    return " ".join((inspect.getdoc(section) or "").split())


def _entry(option: Option) -> str:
    """`- **name** (type, default): text.`"""
    kind = type_text(without_none(option.type))
    facts = [kind]
    if option.required:
        facts.append("required")
    elif (default := _default(option)) is not None:
        facts.append(f"default {default}")
    bounds = _bounds(option)
    if bounds:
        facts.append(bounds)
    if option.needs_restart:
        facts.append("*restart*")
    text = f"- **`{option.name}`** ({'; '.join(facts)}): {option.doc}"
    if option.example:
        text += f" Example: `{option.example}`."
    return _filled(text, "  ")


def _default(option: Option) -> str | None:
    if section_of(option.type) is not None:
        return None if get_origin(option.type) not in (tuple, dict) else "none"
    if option.default is None:
        return "`off`" if without_none(option.type) in (Duration, Size, int, float) else "unset"
    if option.default == () or isinstance(option.default, ReplyRules):
        return "empty"
    return f"`{written(option.default, option.type)}`"


def _bounds(option: Option) -> str:
    low, high = option.metadata.get("min"), option.metadata.get("max")
    kind = without_none(option.type)

    def show(bound: Any) -> str:
        return str(KINDS[kind].format(bound)) if kind in KINDS else str(bound)

    if low is not None and high is not None:
        return f"{show(low)} to {show(high)}"
    if low is not None:
        return f"{show(low)} or more" if low else "may be 0"
    return f"at most {show(high)}" if high is not None else ""


def _filled(text: str, indent: str) -> str:
    """Lines of limited width; what stands between backticks stays in one."""
    kept = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(kept, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
