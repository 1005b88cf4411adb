"""What is shown while the campaign runs: a screen redrawn a few times a second, or a line from time to time."""

from __future__ import annotations

from typing import Final

from mta.control.protocol import QueueRow
from mta.demo.tally import most
from mta.demo.terminal import Terminal, cut, fit
from mta.demo.watch import Watch

FRAME_S: Final = 0.25
LOOK_S: Final = 0.5
LINE_S: Final = 1.0
_LEFT: Final = 11  # columns of what stands before the bars


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
    workers = f"{load.workers} worker{'s' * (load.workers != 1)}"
    if load.missing:
        workers += f", {load.missing} of them not there"
    top = max(*watch.history, 1)
    sparks = watch.history[-(width - _LEFT - 16):]
    ends = [
        terminal.paint(f"{tally.counts['delivered']:,} delivered", "green"),
        terminal.paint(f"{tally.counts['bounced']:,} bounced", "red"),
        terminal.paint(f"{tally.counts['expired']:,} too old", "red"),
        terminal.paint(f"{tally.deferrals:,} deferrals", "yellow"),
    ]
    return [
        terminal.paint(title, "bold") + terminal.paint(hint.rjust(width - len(title)), "dim"),
        "",
        _bar_line(terminal, "accepted", injection.accepted_messages, messages, "messages", rate_in, "blue", width),
        _bar_line(terminal, "finished", tally.ended, expected, "recipients", rate_out, "green", width),
        " " * _LEFT + "   ".join(ends),
        fit("", _LEFT) + cut(
            f"{load.queued:,} recipients in {watch.queues.count:,} queues, {load.in_flight:,} being delivered over "
            f"{load.connections:,} connections by {workers}", width - _LEFT),
        fit("each second", _LEFT) + " " + terminal.paint(terminal.spark([float(n) for n in sparks], top), "green")
        + terminal.paint(f"  top {top:,}", "dim"),
        *([terminal.paint(cut(f"no mail is taken: {load.intake or injection.refused_for_now}", width), "yellow")]
          if load.intake or injection.refused_for_now else []),
    ]


def _bar_line(terminal: Terminal, name: str, done: int, of: int, unit: str, rate: float, colour: str,
              width: int) -> str:
    text = f" {done:,} of {of:,} {unit}".ljust(29) + f"{rate:>6,.0f}/s"
    bar = terminal.bar(done / of if of else 1.0, max(width - _LEFT - len(text), 5), colour)
    return fit(name, _LEFT) + bar + text


def _queues(terminal: Terminal, watch: Watch, limit: int, width: int) -> list[str]:
    name = 26 if width < 90 else 32
    title = fit("fullest queues", name) + "recipients  why they wait"
    lines = [terminal.paint(fit(title, width), "bold")]
    for row in watch.queues.rows[: max(limit, 0)]:
        colour = {"active": "green", "suspended": "red"}.get(row.state, "yellow")
        why = cut(why_it_waits(row), width - name - 12)
        lines.append(f"{fit(row.name, name)}{row.recipients:>10,}  {terminal.paint(why, colour)}")
    return lines + [""] * (max(limit, 0) + 1 - len(lines))


def why_it_waits(row: QueueRow) -> str:
    """State and reason of a queue in words."""
    if row.state == "active":
        return f"being delivered: {row.in_flight:,} now, {row.connections:,} connections to the site"
    if row.state == "waiting":
        return f"tried again soon; last: {row.last_reply}" if row.last_reply else "tried again soon"
    return row.reason or row.last_reply or row.state


def _reasons(terminal: Terminal, watch: Watch, limit: int, width: int) -> list[str]:
    """The reasons that held mail up most often; those that paused a whole site are marked."""
    tally = watch.tally
    found = [(reason.count, text, reason.example, False) for text, reason in most(tally.waits, limit)]
    found += [(reason.count, text, reason.example, True) for text, reason in most(tally.pauses, limit)]
    found.sort(key=lambda item: (-item[0], item[1]))
    example = 24 if width >= 90 else 0
    lines = [terminal.paint(fit("held up so far by", width), "bold")]
    for count, text, domain, pause in found[:limit]:
        head = f"{count:>7,} x  "
        said = f"[site paused] {text}" if pause else text
        lines.append(head + terminal.paint(fit(said, width - len(head) - example), "yellow")
                     + (terminal.paint(f"  {cut(domain, example - 2)}", "dim") if example else ""))
    return lines


def line(watch: Watch) -> str:
    """The state on one line, for a log."""
    injection, tally, load = watch.injection, watch.tally, watch.load
    text = (f"{injection.seconds_since_start:5.1f} s  accepted {injection.accepted_messages:,}  "
            f"delivered {tally.counts['delivered']:,}  bounced {tally.counts['bounced']:,}  queued {load.queued:,}  "
            f"connections {load.connections:,}")
    return f"{text}  last deferral: {tally.last_wait}" if tally.last_wait and load.queued else text
