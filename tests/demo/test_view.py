"""What the demo shows fits the terminal and is harmless, whatever hosts say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mta.control.protocol import QueueRow
from mta.demo import summary, view
from mta.demo.account import compare
from mta.demo.instance import Usage
from mta.demo.internet import KINDS
from mta.demo.tally import Tally
from mta.demo.terminal import Terminal, cut
from mta.demo.watch import Load, Queues, Watch
from tests.demo.helpers import NO_FAULTS, Events, Screen, injection, plain, watch

EVIL = "451 4.7.1 \x1b[2J\x07 Größe \u202e " + "x" * 300


def busy(directory: Path) -> Watch:
    """A demo with much to show."""
    events = Events()
    for number in range(30):
        events.received(f"<{number}@x>", f"u{number}@host{number}.example")
        events.deferred(f"<{number}@x>", f"u{number}@host{number}.example", text=f"{EVIL}{number % 20}")
    for number in range(10):
        events.suspended(f"mx{number}.example", f"421 {EVIL} {number}")
    made = watch(directory, events.tally)
    made.load = Load(4, 1, 1_234_567, 4321, 12, 12_345, intake=EVIL)
    made.history = list(range(500))
    made.queues = Queues([QueueRow(f"very-long-name-of-a-queue-{number}.example" * 2, "d", 10, 10 + number,
                                   state=("active", "waiting", "suspended", "ready")[number % 4],
                                   reason=EVIL + str(number), last_reply=EVIL) for number in range(60)], 60)
    return made


@pytest.mark.parametrize("columns", [40, 60, 79, 80, 100, 133, 300])
@pytest.mark.parametrize("rows", [10, 24, 60])
def test_a_frame_fits_the_terminal(columns: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 60 columns on no line is longer than the terminal is wide, and none too many; no control characters."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(Screen())
    monkeypatch.setattr(Terminal, "size", lambda self: (max(columns, 60), rows))

    lines = [plain(line) for line in view.frame(terminal, busy(tmp_path), 100_000, 60.0)]

    assert len(lines) <= rows
    assert max(map(len, lines)) < max(columns, 60)
    assert all(line.isprintable() for line in lines)


def test_no_color_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR the frame has no escape sequences at all."""
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in "".join(view.frame(Terminal(Screen()), busy(tmp_path / "one"), 100, 60.0))

    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(view.frame(Terminal(Screen()), busy(tmp_path / "two"), 100, 60.0))


@pytest.mark.parametrize("term", ["", "dumb"])
def test_a_dumb_terminal_gets_lines(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view is for terminals that can be drawn on."""
    monkeypatch.setenv("TERM", term)

    assert not Terminal(Screen()).live


def test_the_screen_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view has a screen of its own; what was on the terminal before is there again afterwards."""
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    terminal = Terminal(screen)
    terminal.leave()
    assert screen.getvalue() == ""

    terminal.show(["a"])
    terminal.show(["b"])
    terminal.leave()
    assert screen.getvalue().count("\x1b[?1049h") == 1
    assert screen.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_queues_that_wait_for_the_same_reason_are_one_line() -> None:
    """Sites, countdowns and addresses differ; the reason is what is told. The group with most mail comes first."""
    down = "{} is suspended for another {} s: 4.4.1 {} [127.0.0.{}:25]: connect: Connection refused"
    rows = [QueueRow(f"d{n}.example", "", n, n, state="suspended", reason=down.format(f"mx{n}", n, f"mx{n}", n))
            for n in (1, 2, 3)]
    rows.append(QueueRow("big.example", "", 50, 50, state="ready",
                         reason="limit of 8 connections to mx.big is reached, over all workers"))

    groups = view.grouped(rows)

    assert [(why, [row.name for row in found]) for why, found in groups] == [
        ("limit of 8 connections at once", ["big.example"]),
        ("site paused: connect: Connection refused", ["d3.example", "d2.example", "d1.example"])]


@pytest.mark.parametrize("columns", [60, 80, 90, 110])
@pytest.mark.parametrize("good", [True, False])
def test_the_summary_fits_the_terminal(columns: int, good: bool, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the largest numbers and the longest replies; the verdict stands in it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Terminal, "size", lambda self: (columns, 24))
    events = Events() if good else Events().delivered("<1@x>", "a@d.example")
    tally = busy(tmp_path).tally if not good else Tally()
    tally.failures.update(events.bounced("<2@x>", "a@d.example", text=EVIL).tally.failures)
    account = compare(0, injection(), Tally() if good else events.tally, [], NO_FAULTS, at_rest=True)
    kinds = [summary.KindRow(kind, 150, 12_345, 12_345, 1234, 0, 12_345, 20, 12.34, 123.4) for kind in KINDS]
    result = summary.Summary(
        account, tally, kinds, 1, 123.4, 55.5, 10**9, 123_456, 1234, Usage(100.0, [10**8] * 4, 3), 99.0, 12,
        [(EVIL, busy(tmp_path / "more").queues.rows)], [EVIL], [(EVIL, 3)])

    lines = [plain(line) for line in summary.as_text(Terminal(Screen()), result)]

    assert max(map(len, lines)) <= columns
    assert all(line.isprintable() for line in lines)
    assert ("Every message is accounted for." in lines) is good
    assert summary.as_json(result)["accounted_for"] is good


def test_text_is_cut_to_columns() -> None:
    """What is not ASCII may be two columns wide, or none: it is escaped."""
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcd.."
    assert re.fullmatch(r"Gr\\xf6\.\.", cut("Größe", 8))


def test_without_a_terminal_the_width_is_fixed(tmp_path: Path) -> None:
    """Into a pipe no terminal is asked."""
    with (tmp_path / "out").open("w") as stream:
        terminal = Terminal(stream)
        assert not terminal.live
        assert terminal.width == 120
        assert os.fstat(stream.fileno()).st_size == 0
