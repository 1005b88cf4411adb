"""What rules on replies suspend or limit now, for operators: listed, and ended.

It is in the table that all workers share (`mta.delivery.pathstate`). People see it in the form of orders: by `rule
NAME`, without a number, and the reply is the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mta.control.exits import USAGE
from mta.control.orders import OrderKeeper
from mta.control.protocol import OrderRow, RequestError, order_row
from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold
from mta.loop.turns import give_way
from mta.queue.orders import Order

LIFTED: Final = {"suspension": ("all",), "limit": ("connections", "rate")}  # what an operator may end
AT_ONCE: Final = 500  # states looked at without a break


def listed(limits: Limits, now_us: int) -> list[OrderRow]:
    """All of it, what ends last first."""
    found: list[OrderRow] = []
    for count, (name, state) in enumerate(limits.states(), 1):
        found += [order_row(_order(name, hold)) for hold in state.holds if hold.by_rule and hold.until_us > now_us]
        if count % AT_ONCE == 0:
            give_way()
    return sorted(found, key=lambda one: (-one.until_us, one.target, one.kind))


def lift(limits: Limits, orders: OrderKeeper, targets: Iterable[str], what: str, by: str, now_us: int) -> list[Order]:
    """An operator ends what rules decided about these targets, `what` of LIFTED. What there was. Raises RequestError.
    """
    kinds = LIFTED.get(what)
    if kinds is None:
        raise RequestError(f"what rules decided and is called {what!r:.40} is not known", USAGE)
    found = [_order(target, hold) for target in targets for hold in limits.state(target).holds
             if hold.by_rule and hold.what in kinds and hold.until_us > now_us]

    def act() -> None:
        for target in {one.target for one in found}:
            limits.update(target, lambda state: state.without_rules(kinds))

    if found:
        orders.lifted(found, by, act)
    return found


def _order(name: str, hold: Hold) -> Order:
    return Order(
        0, "suspend" if hold.what == "all" else "limit", hold.by, hold.since_us, target=name, until_us=hold.until_us,
        reason=hold.reason, connections=int(hold.value) if hold.what == "connections" else None,
        rate=hold.value if hold.what == "rate" else None)


def in_words(one: Order) -> str:
    """One that is ended."""
    return f"{'suspension' if one.kind == 'suspend' else one.kind} of {one.target} by {one.by}: {one.reason}"
