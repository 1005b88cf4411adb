"""How `mta queue show` and `mta message` print one delivery."""

from __future__ import annotations

from mta.cli.text import age, count, printable, size, stamp, until
from mta.control.protocol import DeliveryRow

RECIPIENTS_SHOWN = 10


def print_in_queue(delivery: DeliveryRow, now_us: int) -> None:
    """Print a delivery among others of its queue: which message it is of comes first."""
    message, sender = printable(delivery.message), printable(delivery.sender) or "<>"
    print(f"{message}  from {sender}, {size(delivery.size)}, {age(delivery.arrival_us, now_us)} old")
    _print(delivery, now_us, RECIPIENTS_SHOWN)


def print_of_message(delivery: DeliveryRow, now_us: int) -> None:
    """Print a delivery among others of its message: the queue comes first, and all recipients are shown."""
    print(f"queue {printable(delivery.queue)}")
    _print(delivery, now_us, len(delivery.recipients))


def _print(delivery: DeliveryRow, now_us: int, most_recipients: int) -> None:
    print(f"  {_when(delivery, now_us)}")
    if delivery.reason:
        print(f"  waits: {printable(delivery.reason)}")
    if delivery.way:
        print(f"  way: {printable(delivery.way)}")
    shown = delivery.recipients[:most_recipients]
    for recipient in shown:
        asked = [f"NOTIFY={printable(recipient.notify)}"] if recipient.notify else []
        asked += [f"ORCPT={printable(recipient.orcpt)}"] if recipient.orcpt else []
        print(f"  to {printable(recipient.address)}" + (f"  ({', '.join(asked)})" if asked else ""))
    if len(shown) < len(delivery.recipients):
        print(f"  and {count(len(delivery.recipients) - len(shown), 'more recipient')}")
    for attempt in delivery.history:
        remote = f"{printable(attempt.remote)}: " if attempt.remote else ""
        print(f"  {stamp(attempt.time_us)}  {remote}{printable(attempt.reply)}")


def _when(delivery: DeliveryRow, now_us: int) -> str:
    if delivery.in_flight:
        state = "being delivered"
    elif delivery.due_us > now_us:
        state = f"next attempt {until(delivery.due_us, now_us)} ({stamp(delivery.due_us)})"
    else:
        state = "due"
    parts = [state, count(delivery.attempts, "failed attempt") if delivery.attempts else "not tried yet"]
    if delivery.expires_us:
        parts.append(f"given up {until(delivery.expires_us, now_us)}")
    if delivery.maybe_duplicate:
        parts.append("a crash left it open whether the remote host has it already")
    return ", ".join(parts)
