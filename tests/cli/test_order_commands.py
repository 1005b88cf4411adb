"""The commands that give orders, against a control process of canned answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.cli import COMMANDS, MODULES
from mta.control import exits
from mta.control.protocol import Missing, OrderAnswer, OrderList, OrderRow, RequestError, TouchList, TouchRow

MTA = Callable[..., Any]
CONTROL = Callable[..., Any]
TOUCHED = TouchList([TouchRow("acme@d.test", 1200, 1300)], 1, 1200, 1300)
PAUSE = OrderRow(12, "pause", "alice", 1, "tenant=acme", reason="why\x1b[2J")
LIMIT = OrderRow(13, "limit", "bob", 1, target="provider:google", connections=2, rate=0.5)
SWEEP = OrderRow(14, "delete", "bob", 1, "queue=*", deliveries=1000, recipients=1000, shards_done=1, shards=2)


def answers(command: str, arguments: dict[str, Any]) -> object:
    """What a control process says."""
    match command:
        case "touched":
            return TOUCHED
        case "orders":
            return OrderList([PAUSE, LIMIT, SWEEP])
        case "order":
            return OrderAnswer([OrderRow(15, arguments["kind"], "root", 1)], 3)
        case "end":
            return OrderAnswer([one for one in (PAUSE, LIMIT, SWEEP) if one.number in arguments["numbers"]])
    raise RequestError(command)


@pytest.mark.parametrize(("words", "asked"), [
    (["pause", "tenant=acme", "and", "age>2h"], {"kind": "pause", "filter": "tenant=acme and age>2h"}),
    (["pause", "--tenant", 'a"b', "--older", "2h"], {"filter": '(tenant="a\\"b") and (age>"2h")'}),
    (["freeze", "01HQ3Z8K2V4X0"], {"kind": "freeze", "filter": "message=01hq3z8k2v4x0"}),
    (["retry", "domain=d", "--now"], {"kind": "retry", "now": True}),
    (["delete", "queue=*", "--notify", "--reason", "x"], {"kind": "delete", "notify": True, "reason": "x"}),
    (["expire", "--sender", "@d"], {"kind": "expire", "filter": 'sender="@d"'}),
    (["reroute", "other", "domain=d"], {"kind": "reroute", "pool": "other", "filter": "domain=d"}),
    (["suspend", "source=out1"], {"kind": "suspend", "target": "source:out1"}),
    (["suspend", "out1>mx.test"], {"target": "out1>mx.test"}),
    (["limit", "provider=google", "connections=2", "rate=30/min"],
     {"kind": "limit", "target": "provider:google", "connections": 2, "rate": 0.5}),
])
def test_what_is_typed_is_what_is_ordered(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str],
                                          asked: dict[str, Any]) -> None:
    """Each with what it touches, its number, and what still runs."""
    fake = control(answers)
    result = mta(*words, "--yes", "--run", tmp_path)
    command, arguments = fake.requests[-1]
    assert (result.code, result.err, command) == (exits.OK, "", "order")
    assert asked.items() <= arguments.items()
    assert "order 15: " in result.out
    assert "3 deliveries being delivered just now run to their end" in result.out


def test_an_end_is_a_time_from_now(mta: MTA, control: CONTROL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `--for`, or as words of a limit."""
    monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000)
    fake = control(answers)
    mta("pause", "queue=*", "--for", "1h", "--yes", "--run", tmp_path)
    mta("limit", "a", "connections=1", "for", "1h", "--yes", "--run", tmp_path)
    ends = [arguments["until_us"] for command, arguments in fake.requests if command == "order"]
    assert ends == [3_601_000_000, 3_601_000_000]


def test_a_dry_run_orders_nothing(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """It shows what would be touched."""
    fake = control(answers)
    result = mta("delete", "tenant=acme", "--dry-run", "--run", tmp_path)
    assert [command for command, _ in fake.requests] == ["touched"]
    assert result.out.splitlines() == [
        "QUEUE        DELIVERIES  RCPTS", "acme@d.test       1,200  1,300",
        "tenant=acme is 1,200 deliveries to 1,300 recipients in 1 queue now"]


@pytest.mark.parametrize(("said", "code", "ordered"), [("y\n", exits.OK, True), ("n\n", exits.USAGE, False)])
def test_it_asks_on_a_terminal(mta: MTA, control: CONTROL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str,
                               code: int, ordered: bool) -> None:
    """And does nothing without a yes."""
    terminal = io.StringIO(said)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    fake = control(answers)
    assert mta("delete", "tenant=acme", "--run", tmp_path).code == code
    assert ("order" in [command for command, _ in fake.requests]) is ordered


@pytest.mark.parametrize(("words", "says"), [
    (["pause"], "which mail"),
    (["pause", "tenat=x"], "column 1: no field 'tenat': did you mean tenant"),
    (["pause", "queue=*", "--for", "soon"], "soon"),
    (["freeze", "x"], "no message id"),
    (["suspend", "sauce=x"], "expected a path"),
    (["unsuspend"], "which"),
    (["limit", "a", "connections=x"], "expected connections=N"),
    (["limit", "a", "for", "1h"], "to what"),
    (["orders", "remove", "1"], "cancel"),
    (["delete", "queue=*"], "needs --yes"),
])
def test_what_is_wrong_is_said_before_anything_is_done(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str],
                                                      says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 64."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    fake = control(answers)
    result = mta(*words, "--run", tmp_path)
    assert result.code == exits.USAGE
    assert says in result.err
    assert "order" not in [command for command, _ in fake.requests]


@pytest.mark.parametrize(("words", "numbers"), [
    (["resume", " Tenant=ACME"], [12]), (["resume", "12"], [12]), (["resume", "--all"], [12]),
    (["limit", "provider=google", "off"], [13]), (["orders", "cancel", "14", "12"], [12, 14]),
])
def test_orders_are_ended(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str], numbers: list[int]) -> None:
    """By what they are about, by number, or all."""
    fake = control(answers)
    result = mta(*words, "--run", tmp_path)
    assert (result.code, fake.requests[-1]) == (exits.OK, ("end", {"numbers": numbers}))
    assert f"order {numbers[0]} is ended" in result.out


@pytest.mark.parametrize("words", [["resume", "tenant=x"], ["unsuspend", "--all"], ["limit", "a", "off"],
                                   ["reroute", "off", "queue=*"], ["orders", "cancel", "99"]])
def test_what_is_not_there_cannot_be_ended(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str]) -> None:
    """Exit code 66, and what there is."""
    control(answers)
    result = mta(*words, "--run", tmp_path)
    assert result.code == exits.NO_INPUT
    assert "there is no such order" in result.err


def test_orders_are_listed(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """With their progress; text of others cannot do anything to the terminal."""
    control(answers)
    out = mta("orders", "--run", tmp_path).out
    assert "limit provider=google connections=2 rate=30/min" in out
    assert "1,000 deliveries, 1 of 2 shards" in out
    assert "\x1b" not in out
    lines = mta("orders", "--json", "--run", tmp_path).out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [12, 13, 14]


def test_a_worker_that_does_not_answer_is_named(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Exit code 75: the order stands, and it will obey."""

    def some(command: str, arguments: dict[str, Any]) -> object:
        found = answers(command, arguments)
        if isinstance(found, OrderAnswer):
            found.missing = [Missing(1, "is not running")]
        return found

    control(some)
    result = mta("pause", "queue=*", "--yes", "--run", tmp_path)
    assert result.code == exits.TEMPORARY
    assert "worker 1 is not running" in result.err


def test_every_command_of_a_shared_module_is_listed() -> None:
    """Else it could not be typed."""
    assert MODULES.keys() <= set(COMMANDS)
