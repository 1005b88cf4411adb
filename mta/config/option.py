"""How an option of the configuration is declared: a field of a dataclass, with what the operator is to know of it."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any = dataclasses.MISSING, doc: str = "", **metadata: Any) -> Any:
    """Declare one option. `default` may be a zero-argument factory (a type, a lambda); without one it is required.

    `metadata` may hold:
    `min`, `max`: inclusive bounds, of each item in a list (a Duration or Size is above zero unless `min=0` says so);
    `example`: a value as it is written; `reload="restart"`: a SIGHUP does not change it;
    `default_port`: of endpoints written without one; `listens=True`: endpoints to bind to, addresses with any port;
    `address_only=True`: endpoints whose host is an address;
    `destination_only=True`: an option of shaping that has no effect for a source, only for where mail goes.
    """
    metadata["doc"] = doc
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
