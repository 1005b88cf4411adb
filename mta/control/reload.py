"""Which part of a changed configuration takes effect at once, and which waits for a restart.

An option that the schema marks `reload="restart"` keeps its old value until the MTA is restarted. The children get
the new configuration with those old values put back, so that all of them always run on the same one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mta.config.schema import Config


def merge(old: Config, new: Config) -> tuple[Config, list[str]]:
    """The configuration to run on after a reload, and the names of the options that need a restart to change."""
    kept: list[str] = []
    merged: Config = _merge(old, new, "", kept)
    return merged, kept


def _merge(old: Any, new: Any, prefix: str, kept: list[str]) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        name = f"{prefix}{field.name}"
        if field.metadata.get("reload") != "restart":
            if dataclasses.is_dataclass(after) and type(before) is type(after):
                changes[field.name] = _merge(before, after, f"{name}.", kept)
        elif not _only_reloadable(before, after):
            changes[field.name] = before
            kept.append(name)
    return dataclasses.replace(new, **changes)


def _only_reloadable(before: Any, after: Any) -> bool:
    """Whether two lists of sections differ in nothing but options that a reload may change.

    A list marked "restart" whose items mark only some of their options, such as `listeners`, is fixed in these alone:
    `relay_from` may change while the addresses stay.
    """
    if not (isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after)):
        return False
    for one, other in zip(before, after, strict=True):
        if not dataclasses.is_dataclass(one):
            return False
        fixed = [field.name for field in dataclasses.fields(one) if field.metadata.get("reload") == "restart"]
        if not fixed or any(getattr(one, name) != getattr(other, name) for name in fixed):
            return False
    return True
