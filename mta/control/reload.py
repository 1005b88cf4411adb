"""Which part of a changed configuration takes effect at once, and which waits for a restart.

An option that the schema marks `reload="restart"` keeps its old value until the MTA is restarted. The children get
the new configuration with those old values put back, so that all of them always run on the same one. What the merged
configuration and the file still differ in is what a restart would change (`mta.config.effective.changes`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mta.config.schema import Config


def merge(old: Config, new: Config) -> Config:
    """The configuration to run on after a reload of `new`."""
    merged: Config = _merge(old, new)
    return merged


def _merge(old: Any, new: Any) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.metadata.get("reload") == "restart":
            # An Endpoint is a tuple, too, but no list.
            changes[field.name] = _merge_lists(before, after) if type(before) is tuple else before
        elif dataclasses.is_dataclass(after) and type(before) is type(after):
            changes[field.name] = _merge(before, after)
    return dataclasses.replace(new, **changes)


def _merge_lists(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[Any, ...]:
    """The old list, with the new options of those items that are still there.

    An item is the same when its options that need a restart are: a listener keeps its address, while `relay_from` may
    change. Added and removed ones wait for the restart.
    """
    left = list(after)
    merged = []
    for item in before:
        fixed = _fixed(item)
        same = next((other for other in left if fixed and _fixed(other) == fixed), None)
        if same is not None:
            left.remove(same)
        merged.append(item if same is None else _merge(item, same))
    return tuple(merged)


def _fixed(item: Any) -> dict[str, Any]:
    """The options of a section that a reload does not change."""
    if not dataclasses.is_dataclass(item):
        return {}
    return {
        field.name: getattr(item, field.name)
        for field in dataclasses.fields(item)
        if field.metadata.get("reload") == "restart"
    }
