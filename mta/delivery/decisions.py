"""What rules on replies and operators decided, in words: what it is, why, by whom, until when, and what ends it.

Of an order that holds mail, and of a *hold* (`mta.delivery.holds`) on a path, source, provider, domain or tenant.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mta.delivery.controls import LONG_US
from mta.delivery.pace import per_time
from mta.delivery.reason import Reason
from mta.queue import events
from mta.queue.orders import Order

if TYPE_CHECKING:
    from mta.delivery.engine import Engine
    from mta.delivery.pathstate import Hold

_HELD = {"freeze": "frozen", "suspend": "suspended"}


def held_by(order: Order) -> str:
    """Which order holds mail, in words."""
    until = f" until {events.timestamp(order.until_us)[:19]}Z" if order.until_us else ""
    why = f": {order.reason}" if order.reason else ""
    return f"{_HELD.get(order.kind, 'paused')} by order {order.number} of {order.by}{until}{why}"


def state_of(held: Order) -> str:
    """How mail stands that an order holds."""
    return "suspended" if held.kind == "suspend" else "paused"


def ordered(order: Order) -> Reason:
    """An order holds it."""
    command = "unsuspend" if order.kind == "suspend" else "resume"
    return Reason("order", held_by(order), order.at_us, order.until_us,
                  f"`mta {command} {shlex.quote(order.filter)}` ends the order", {"order": order.number})


def suspension(engine: Engine, name: str, hold: Hold) -> Reason:
    """A decision of a rule or an operator."""
    return Reason("suspension", f"{name} is suspended: {decided(engine, name, hold)}", hold.since_us, end_of(hold),
                  lifted_by(name, hold))


def decided(engine: Engine, name: str, hold: Hold) -> str:
    """Why, and by whom; an order without a reason is called by its number once."""
    author = _author(engine, name, hold)
    return f"by {author}" if hold.reason == author else f"{hold.reason} (by {author})"


def _author(engine: Engine, name: str, hold: Hold) -> str:
    if hold.by == "operator":
        for order in engine.controls.orders.orders:
            if order.target == name and order.kind in ("suspend", "limit"):
                return f"order {order.number} of {order.by}"
    return hold.by


def end_of(hold: Hold) -> int:
    """When it ends by itself; 0: an operator's that does not."""
    return 0 if hold.until_us - hold.since_us >= LONG_US else hold.until_us


def value_of(hold: Hold) -> str:
    """To what rate, or how many connections, it limits."""
    count = int(hold.value)
    return per_time(hold.value) if hold.what == "rate" else f"{count} connection{'s' if count != 1 else ''}"


def lifted_by(name: str, hold: Hold) -> str:
    """The command that ends a hold on `name`."""
    kind, colon, rest = name.partition(":")
    target = f"{kind}={rest}" if colon and ">" not in name else f"'{name}'"
    command = f"`mta unsuspend {target}`" if hold.what == "all" else f"`mta limit {target} off`"
    if hold.by_rule:
        return f"{command} ends it before; `mta rules show {hold.by_rule}` shows the rule"
    return command
