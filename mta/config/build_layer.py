"""Tree to a layer of shaping: only what is written counts, and `~` is a value."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mta.config.describe import Option, options_of, section_of
from mta.config.problems import Fault, OptionPath, path_text
from mta.config.shaping import UNSET, Layer, Match, Place, Shaping
from mta.config.tree import Node, Scalar

if TYPE_CHECKING:
    from mta.config.build import Builder


def read_layer(builder: Builder, node: Node, cls: Any, path: OptionPath) -> Layer:
    """What `node` at `path` sets. What is faulty is reported and left out. Raises Fault when nothing is of use."""
    options = options_of(cls)
    entries = builder.entries(node, path, f"options such as {', '.join(list(options_of(Shaping))[:3])}")
    builder.unknown_options(entries, path, options)
    reading = _Reading(builder)
    parts: dict[str, Any] = {}
    fields = {one.name for one in dataclasses.fields(cls)}
    for name in (name for name in options if name in entries):
        key, value = entries[name]
        option, here = options[name], (*path, name)
        if name in fields:  # `match` of a provider, the inner tables of a source
            try:
                parts[name] = builder.option(key, value, option.type, here, option.metadata)
            except Fault:
                builder.faulty.add(here)
        elif section_of(option.type) is option.type:
            reading.section(key, value, option, here)
        else:
            reading.value(key, value, option, here, name)
    if parts.get("match") == Match() and not any(one[: len(path) + 1] == (*path, "match") for one in builder.faulty):
        where = entries["match"][0]
        builder.report(where.line, where.column, f"{path_text((*path, 'match'))}: nothing to know the provider by, "
                       f"expected mx, domains or networks")
        builder.faulty.add((*path, "match"))
    layer: Layer = cls(reading.options, reading.places, **parts)
    return layer


class _Reading:
    """Values and their places so far."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.options: dict[str, Any] = {}
        self.places: dict[str, Place] = {}

    def section(self, key: Scalar, node: Node, option: Option, path: OptionPath) -> None:
        """The options of one section inside, or all of them unset at once."""
        builder, inner = self.builder, options_of(option.type)
        builder.given[path] = (key.line, key.column)
        if _is_unset(node):
            for name in inner:
                self._set(f"{option.name}.{name}", UNSET, key.line)
            return
        try:
            entries = builder.entries(node, path, f"options such as {', '.join(list(inner)[:3])}")
        except Fault:
            builder.faulty.add(path)
            return
        builder.unknown_options(entries, path, inner)
        for name in (name for name in inner if name in entries):
            self.value(*entries[name], inner[name], (*path, name), f"{option.name}.{name}")

    def value(self, key: Scalar, node: Node, option: Option, path: OptionPath, name: str) -> None:
        """One option."""
        builder = self.builder
        if _is_unset(node):
            builder.given[path] = (node.line, node.column)
            self._set(name, UNSET, node.line)
            return
        try:
            value = builder.option(key, node, option.type, path, option.metadata)
        except Fault:
            builder.faulty.add(path)
            return
        if not (isinstance(value, tuple) and None in value):  # None: a faulty one in a list
            self._set(name, value, builder.given[path][0])

    def _set(self, name: str, value: Any, line: int) -> None:
        self.options[name] = value
        self.places[name] = Place(self.builder.file, line)


def _is_unset(node: Node) -> bool:
    """`~` or `null` is written; a section all of whose options are commented out is only empty."""
    return isinstance(node, Scalar) and node.is_null and node.text != ""
