"""What is shown while the campaign runs: a screen redrawn a few times a second, or a line from time to time."""

from __future__ import annotations

import re
from typing import Final

from mta.control.protocol import QueueRow
from mta.demo.tally import Reason, most
from mta.demo.terminal import Terminal, cut, fit
from mta.demo.watch import Watch

FRAME_S: Final = 0.25
LOOK_S: Final = 0.5
LINE_S: Final = 1.0
_LEFT: Final = 12  # columns of what stands before the bars


def frame(terminal: Terminal, watch: Watch, messages: int, limit_s: float) -> list[str]:
    """The screen as lines."""
    columns, rows = terminal.size()
    width = min(columns, terminal.width) - 1
    lines = [*_head(terminal, watch, messages, limit_s, width), ""]
    room = max(rows - len(lines) - 1, 0)
    reasons = min(max(room // 3, 3), 8)
    lines += _queues(terminal, watch, room - reasons - 3, width)
    lines += ["", *_reasons(terminal, watch, reasons, width)]
    return lines[:rows]


def _head(terminal: Terminal, watch: Watch, messages: int, limit_s: float, width: int) -> list[str]:
    injection, tally, load = watch.injection, watch.tally, watch.load
    rate_in, rate_out = watch.rates
    expected = max(len(tally.accepted), 1) if injection.done else max(messages, len(tally.accepted))
    title = f"mta demo   {injection.seconds_since_start:.1f} s"
    hint = f"Ctrl-C ends it (it does so by itself within {limit_s:.0f} s)"
    if len(title) + len(hint) + 2 > width:
        hint = "Ctrl-C ends it"
    trouble = load.intake or injection.trouble
    workers = f"{load.workers} worker{'s' * (load.workers != 1)}"
    if load.missing:
        workers += f" ({load.missing} gone)"
    top = max(*watch.history, 1)
    sparks = watch.history[-(width - _LEFT - 12):]
    ends = [(f"{tally.counts['delivered']:,} delivered", "green"), (f"{tally.counts['bounced']:,} bounced", "red"),
            (f"{tally.counts['expired']:,} too old", "red"), (f"{tally.deferrals:,} deferrals", "yellow")]
    indent = _LEFT if sum(len(text) + 3 for text, _ in ends) <= width - _LEFT else 0
    return [
        terminal.paint(title, "bold") + terminal.paint(hint.rjust(width - len(title)), "dim"),
        "",
        _bar_line(terminal, "accepted", injection.accepted_messages, messages, "messages", rate_in, "blue", width),
        _bar_line(terminal, "finished", tally.ended, expected, "recipients", rate_out, "green", width),
        " " * indent + _side_by_side(terminal, ends, width - indent),
        fit("in queue", _LEFT) + cut(
            f"{load.queued:,} recipients, {load.in_flight:,} under way; {load.connections:,} connections; {workers}",
            width - _LEFT),
        fit("delivered/s", _LEFT) + terminal.paint(terminal.spark([float(n) for n in sparks], top), "green")
        + terminal.paint(f"  top {top:,}", "dim"),
        *([terminal.paint(cut(f"no mail is taken: {trouble}", width), "red")] if trouble else []),
    ]


def _side_by_side(terminal: Terminal, parts: list[tuple[str, str]], width: int) -> str:
    """Texts with their colours, as many as fit."""
    line, used = "", -2
    for text, colour in parts:
        used += 2 + len(text)
        if used > width:
            break
        line += ("  " if line else "") + terminal.paint(text, colour)
    return line


def _bar_line(terminal: Terminal, name: str, done: int, of: int, unit: str, rate: float, colour: str,
              width: int) -> str:
    text = f" {done:,} of {of:,} {unit}".ljust(29) + f"{rate:>6,.0f}/s"
    bar = terminal.bar(done / of if of else 1.0, max(width - _LEFT - len(text), 5), colour)
    return fit(name, _LEFT) + bar + text


def _queues(terminal: Terminal, watch: Watch, limit: int, width: int) -> list[str]:
    """The queues by why they wait: what has most recipients first, each with its fullest queue."""
    name = 24 if width < 90 else 36
    title = f"{fit('queues', name)}{'mail':>7}  why it waits"
    lines = [terminal.paint(fit(title, width), "bold")]
    groups = grouped(watch.queues.rows)
    for why, rows in groups[: max(limit, 0)]:
        colour = "green" if rows[0].state == "active" else "red" if rows[0].state == "suspended" else "yellow"
        more = f" +{len(rows) - 1:,}" if len(rows) > 1 else ""
        who = fit(cut(rows[0].name, name - len(more) - 2) + more, name)
        recipients = sum(row.recipients for row in rows)
        lines.append(f"{who}{recipients:>7,}  {terminal.paint(cut(why, width - name - 9), colour)}")
    return lines + [""] * (max(limit, 0) + 1 - len(lines))


def grouped(rows: list[QueueRow]) -> list[tuple[str, list[QueueRow]]]:
    """Queues that wait for the same reason together; most recipients first, of the groups and in each."""
    groups: dict[str, list[QueueRow]] = {}
    for row in sorted(rows, key=lambda row: (-row.recipients, row.name)):
        groups.setdefault(why_it_waits(row), []).append(row)
    return sorted(groups.items(), key=lambda item: (-sum(row.recipients for row in item[1]), item[0]))


def why_it_waits(row: QueueRow) -> str:
    """State and reason of a queue in words, without what is different from one queue to the next."""
    if row.state == "active":
        return "being delivered"
    if row.state == "waiting":
        return f"retry: {essence(row.last_reply)}" if row.last_reply else "for its retry time"
    if row.state == "suspended":
        return f"site paused: {essence(row.reason.partition(': ')[2] or row.last_reply)}"
    if row.reason.startswith("limit of"):
        return f"{row.reason.partition(' connections')[0]} connections at once"
    return essence(row.reason) or row.last_reply or row.state


def essence(reason: str) -> str:
    """A reason without the code, name and address that we put before our own description of what went wrong."""
    reason = re.sub(r"^(45\d )?4\.\d\.\d (\S+ \[[0-9a-fA-F.:]+\](:\d+)?: |connection lost: )", "", reason)
    return re.sub(r"^MX of \S+ cannot be looked up: \S+: ", "DNS: ", reason)


def _reasons(terminal: Terminal, watch: Watch, limit: int, width: int) -> list[str]:
    """The replies that held mail up most often, and those that paused a whole site."""
    tally = watch.tally
    found = [(reason.count, text) for text, reason in most(tally.waits, limit)]
    found += [(reason.count, f"site paused: {text}") for text, reason in most(by_essence(tally.pauses), limit)]
    found.sort(key=lambda item: (-item[0], item[1]))
    lines = [terminal.paint(fit("held up so far by", width), "bold")]
    for count, text in found[:limit]:
        head = f"{count:>7,} x  "
        lines.append(head + terminal.paint(cut(text, width - len(head)), "yellow"))
    return lines


def by_essence(reasons: dict[str, Reason]) -> dict[str, Reason]:
    """Reasons that differ in names and addresses only, taken together."""
    result: dict[str, Reason] = {}
    for text, reason in reasons.items():
        found = result.setdefault(essence(text), Reason(0, reason.example))
        found.count += reason.count
    return result


def line(watch: Watch) -> str:
    """The state on one line, for a log."""
    injection, tally, load = watch.injection, watch.tally, watch.load
    text = (f"{injection.seconds_since_start:5.1f} s  accepted {injection.accepted_messages:,}  "
            f"delivered {tally.counts['delivered']:,}  bounced {tally.counts['bounced']:,}  queued {load.queued:,}  "
            f"connections {load.connections:,}")
    if load.intake or injection.trouble:
        return f"{text}  no mail is taken: {load.intake or injection.trouble}"
    return f"{text}  last deferral: {tally.last_wait}" if tally.last_wait and load.queued else text
