"""The options of the sandbox's file as Markdown: `mta sandbox options`, and a part of docs/sandbox.md."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Final

from mta.config.describe import Option, options_of, section_of, type_text, without_none, written
from mta.sandbox.settings import Behaviour, Dns, Personality, Phase, Rule, Settings

WIDTH: Final = 118

_SECTIONS: Final = (
    ("The file", Settings, None),
    ("A personality", Personality, Behaviour),
    ("", Behaviour, None),
    ("`dns` of a personality", Dns, None),
    ("`rules[]` of a personality", Rule, None),
    ("`phases[]` of a personality", Phase, Behaviour),
)


def markdown() -> str:
    """All options."""
    parts = []
    for title, section, base in _SECTIONS:
        if title:
            parts.append(f"### {title}\n\n{_filled(inspect.getdoc(section) or '', '')}\n")
        inherited = options_of(base) if base is not None else {}
        entries = [_entry(option) for name, option in options_of(section).items() if name not in inherited]
        parts.append("\n".join(entries) + "\n")
    return "\n".join(parts)


def _entry(option: Option) -> str:
    """`- **name** (type, default): text.`"""
    facts = [type_text(without_none(option.type))]
    if option.required:
        facts.append("required")
    elif option.default is None:
        facts.append("default `off`" if "`off`" in option.doc else "default unset")
    elif section_of(option.type) is None and option.default != ():
        facts.append(f"default `{written(option.default, option.type)}`")
    text = f"- **`{option.name}`** ({'; '.join(facts)}): {option.doc}"
    if option.example:
        text += f" Example: `{option.example}`."
    return _filled(text, "  ")


def _filled(text: str, indent: str) -> str:
    """Lines of limited width; what stands between backticks stays in one."""
    kept = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.wrap(kept, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
