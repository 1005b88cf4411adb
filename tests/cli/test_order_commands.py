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
from mta.control.protocol import (
    LiftAnswer,
    Missing,
    OrderAnswer,
    OrderList,
    OrderRow,
    RequestError,
    TouchList,
    TouchRow,
)

MTA = Callable[..., Any]
CONTROL = Callable[..., Any]
TOUCHED = TouchList([TouchRow("acme@d.test", 1200, 1300)], 1, 1200, 1300)
PAUSE = OrderRow(12, "pause", "alice", 1, "tenant=acme", reason="why\x1b[2J")
LIMIT = OrderRow(13, "limit", "bob", 1, target="provider:google", connections=2, rate=0.5)
MAIL = OrderRow(16, "suspend", "bob", 1, 'campaign="spring"')
TENANT = OrderRow(17, "suspend", "bob", 1, target="tenant:loud")
SWEEP = OrderRow(14, "delete", "bob", 1, "queue=*", deliveries=1000, recipients=1000, shards_done=1, shards=2)
RULED = (OrderRow(0, "suspend", "rule x", 1, target="ruled", until_us=1 << 60, reason="421 no"),
         OrderRow(0, "limit", "rule x", 1, target="ruled", until_us=1 << 60, reason="421 no", connections=1))
ORDERS = (PAUSE, LIMIT, SWEEP, MAIL, TENANT)


def answers(command: str, arguments: dict[str, Any]) -> object:
    """What a control process says."""
    match command:
        case "touched":
            return TOUCHED
        case "orders":
            return OrderList(list(ORDERS), ruled=list(RULED) if arguments.get("ruled") else [])
        case "order":
            return OrderAnswer([OrderRow(15, arguments["kind"], "root", 1)], 3)
        case "end":
            return OrderAnswer([one for one in ORDERS if one.number in arguments["numbers"]])
        case "lift":
            ruled = [one for one in arguments["targets"] if one == "ruled"]
            return LiftAnswer([f"{arguments['what']} of {one} by rule x: 421 no" for one in ruled])
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
    (["suspend", "mx.test"], {"target": "mx.test"}),
    (["suspend", "--tenant", "acme"], {"target": "tenant:acme"}),
    (["suspend", "domain=D.Test"], {"target": "domain:d.test"}),
    (["suspend", "domain=BÜCHER.Test"], {"target": "domain:xn--bcher-kva.test"}),
    (["suspend", "--domain", "XN--Bcher-KVA.test"], {"target": "domain:xn--bcher-kva.test"}),
    (["suspend", "Out1>mx.BÜCHER.test"], {"target": "Out1>mx.xn--bcher-kva.test"}),
    (["suspend", "domain=*.test"], {"filter": "domain=*.test"}),
    (["suspend", "campaign=spring", "--for", "1h"], {"kind": "suspend", "filter": "campaign=spring"}),
    (["suspend", "--sender", "@d", "--tenant", "acme"], {"filter": '(tenant="acme") and (sender="@d")'}),
    (["suspend", "age>2h"], {"filter": "age>2h"}),
    (["suspend", "tenant=acme", "and", "age>2h"], {"filter": "tenant=acme and age>2h"}),
    (["limit", "provider=google", "connections=2", "rate=30/min"],
     {"kind": "limit", "target": "provider:google", "connections": 2, "rate": 0.5}),
    (["limit", "domain=bücher.test", "connections=2"], {"target": "domain:xn--bcher-kva.test", "connections": 2}),
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
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    fake = control(answers)
    assert mta("delete", "tenant=acme", "--run", tmp_path).code == code
    assert ("order" in [command for command, _ in fake.requests]) is ordered


@pytest.mark.parametrize(("words", "says"), [
    (["pause"], "which mail"),
    (["pause", "tenat=x"], "column 1: no field 'tenat': did you mean tenant"),
    (["explain", "tenat=x"], "no field 'tenat': did you mean tenant"),
    (["pause", "queue=*", "--for", "soon"], "soon"),
    (["freeze", "x"], "no message id"),
    (["suspend", "sauce=x"], "no field 'sauce': did you mean source"),
    (["suspend", "source=out1 and tenant=acme"], "`mta pause 'source=out1 and tenant=acme'` keeps mail that left last"),
    (["suspend", "source=out*"], "`mta suspend source=NAME`"),
    (["limit", "campaign=spring", "rate=1/s"], "`mta pause campaign=spring` keeps that mail"),
    (["pause", "mx.test"], "`mta pause domain=mx.test`; a path is kept from being used by `mta suspend mx.test`"),
    (["retry", "out1>mx.test"], "`mta suspend 'out1>mx.test'`"),
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


def test_what_the_mta_finds_wrong_is_a_wrong_command(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Such as a pool that the configuration does not have: exit code 64 as for what is found wrong here. What it cannot
    do ends as it says, and 69 stays what it is."""

    def refuses(code: int | None) -> Callable[[str, dict[str, Any]], object]:
        def answer(command: str, arguments: dict[str, Any]) -> object:
            if command == "order":
                raise RequestError("no", code) if code is not None else RequestError("no")
            return answers(command, arguments)

        return answer

    for code, expected in ((exits.USAGE, exits.USAGE), (exits.CANNOT_CREATE, exits.CANNOT_CREATE),
                           (None, exits.UNAVAILABLE)):
        control(refuses(code))
        result = mta("reroute", "nowhere", "queue=*", "--yes", "--run", tmp_path)
        assert (result.code, result.err) == (expected, "mta: no\n")
        (tmp_path / "control.sock").unlink()


@pytest.mark.parametrize(("words", "numbers"), [
    (["resume", " Tenant=ACME"], [12]), (["resume", "12"], [12]), (["resume", "--all"], [12]),
    (["resume", "--tenant", "acme"], [12]), (["unsuspend", "campaign = Spring"], [16]), (["unsuspend", "16"], [16]),
    (["unsuspend", "tenant=loud"], [17]), (["unsuspend", "--campaign", "spring"], [16]),
    (["unsuspend", "--all"], [16, 17]), (["unsuspend", "mx.test", "tenant=loud"], [17]),
    (["limit", "provider=google", "off"], [13]), (["orders", "cancel", "14", "12"], [12, 14]),
])
def test_orders_are_ended(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str], numbers: list[int]) -> None:
    """By what they are about, by number, or all."""
    fake = control(answers)
    result = mta(*words, "--run", tmp_path)
    assert (result.code, fake.requests[-1]) == (exits.OK, ("end", {"numbers": numbers}))
    assert f"order {numbers[0]} is ended" in result.out


@pytest.mark.parametrize(("words", "says"), [
    (["resume", "tenant=acme"], "order 12 would be ended: pause tenant=acme"),
    (["resume", "--all"], "order 12 would be ended: pause tenant=acme"),
    (["unsuspend", "tenant=loud"], "order 17 would be ended: suspend tenant=loud"),
    (["unsuspend", "ruled"], "would be ended: suspension of ruled by rule x: 421 no"),
    (["limit", "ruled", "off"], "would be ended: limit of ruled by rule x: 421 no"),
    (["limit", "provider=google", "off"], "order 13 would be ended: limit provider=google"),
    (["reroute", "off", "domain=d.test"], "order 18 would be ended: reroute domain=d.test to pool other"),
    (["orders", "cancel", "14"], "order 14 would be ended: delete queue=*"),
])
def test_a_dry_run_ends_nothing(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str], says: str) -> None:
    """It says what would be ended, of operators and of rules."""
    route = OrderRow(18, "reroute", "bob", 1, "domain=d.test", pool="other")

    def with_route(command: str, arguments: dict[str, Any]) -> object:
        found = answers(command, arguments)
        return OrderList([*found.orders, route], ruled=found.ruled) if isinstance(found, OrderList) else found

    fake = control(with_route)
    result = mta(*words, "--dry-run", "--run", tmp_path)
    assert (result.code, result.err) == (exits.OK, "")
    assert says in result.out
    assert {command for command, _ in fake.requests} == {"orders"}


@pytest.mark.parametrize(("words", "what"), [
    (["unsuspend", "ruled"], "suspension"), (["limit", "ruled", "off"], "limit")])
def test_what_rules_decided_is_ended(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str], what: str) -> None:
    """Although there is no order about it."""
    fake = control(answers)
    result = mta(*words, "--run", tmp_path)
    assert (result.code, result.out) == (exits.OK, f"ended: {what} of ruled by rule x: 421 no\n")
    assert fake.requests[-1] == ("lift", {"targets": ["ruled"], "what": what})


@pytest.mark.parametrize("words", [["resume", "tenant=x"], ["unsuspend", "tenant=acme2"], ["limit", "a", "off"],
                                   ["reroute", "off", "queue=*"], ["orders", "cancel", "99"]])
def test_what_is_not_there_cannot_be_ended(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str]) -> None:
    """Exit code 66, and what there is."""
    control(answers)
    result = mta(*words, "--run", tmp_path)
    assert result.code == exits.NO_INPUT
    assert "there is no such order" in result.err


@pytest.mark.parametrize(("words", "says"), [
    (["unsuspend", "tenant=acme"], "order 12 (pause tenant=acme) is ended by `mta resume tenant=acme`"),
    (["resume", "campaign=spring"], """is ended by `mta unsuspend 'campaign="spring"'`"""),
    (["resume", "tenant=loud"], "order 17 (suspend tenant=loud) is ended by `mta unsuspend tenant=loud`"),
    (["unsuspend", "provider=google"], "is ended by `mta limit provider=google off`"),
    (["resume", "queue=*"], "is ended by `mta orders cancel 14`"),
])
def test_what_another_command_ends_is_told(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str],
                                           says: str) -> None:
    """With the words to type: what was paused is resumed, what was suspended is not suspended any more."""
    control(answers)
    result = mta(*words, "--run", tmp_path)
    assert result.code == exits.NO_INPUT
    assert says in result.err


def test_a_dry_run_counts_the_mail_of_a_target(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """Of a domain, a provider or a tenant, as of an expression."""
    fake = control(answers)
    out = mta("suspend", "domain=d.test", "--dry-run", "--run", tmp_path).out
    assert fake.requests == [("touched", {"filter": 'domain="d.test"'})]
    assert "is 1,200 deliveries to 1,300 recipients in 1 queue now" in out


def test_orders_are_listed(mta: MTA, control: CONTROL, tmp_path: Path) -> None:
    """With their progress; text of others cannot do anything to the terminal."""
    control(answers)
    out = mta("orders", "--run", tmp_path).out
    assert "limit provider=google connections=2 rate=30/min" in out
    assert "1,000 deliveries, 1 of 2 shards" in out
    assert "\x1b" not in out
    lines = mta("orders", "--json", "--run", tmp_path).out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [12, 13, 14, 16, 17, 0, 0]


@pytest.mark.parametrize(("words", "kinds"), [(["orders"], ["suspend", "limit"]), (["limit"], ["limit"])])
def test_what_rules_decided_is_listed(mta: MTA, control: CONTROL, tmp_path: Path, words: list[str],
                                      kinds: list[str]) -> None:
    """Behind the orders: without a number, by the rule, with the reply; and how many more there are."""
    reply = '421 4.7.0 [2001:db8::1] "no"'
    found = OrderList(ruled=[
        OrderRow(0, "suspend", "rule x", 1, target="[2001:db8::1]", until_us=1 << 60, reason=reply),
        OrderRow(0, "limit", "rule x", 1, target="source:a>provider:b", until_us=1 << 60, reason=reply, rate=0.01)],
        ruled_more=1200)
    fake = control(lambda command, arguments: found)
    out = mta(*words, "--run", tmp_path).out
    assert fake.requests == [("orders", {"ruled": True})]
    _, *lines, more = out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["-", kind, {"suspend": "[2001:db8::1]", "limit": "source:a>provider:b"}[kind]] for kind in kinds]
    assert all("rule x" in line and reply in line for line in lines)
    assert more == "and 1,200 more that rules on replies decided"
    rows = [json.loads(line) for line in mta(*words, "--json", "--run", tmp_path).out.splitlines()]
    assert [(row["kind"], row["by"], row["number"]) for row in rows] == [(kind, "rule x", 0) for kind in kinds]


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
