"""Mail with a time by which it is to be delivered (DELIVERBY, RFC 2852), through a real worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, message

KEEPS = {"extensions": ["DELIVERBY"]}
DOMAINS: dict[str, Any] = {
    "keeps.test": KEEPS,
    "plain.test": {},
    "busy.test": KEEPS | {"rules": [{"at": "rcpt", "reply": "451 4.2.1 Later"}]},
    "dead.test": {"listening": False},
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Receivers with and without the extension, and some that are never ready."""
    with Sandbox({"domains": DOMAINS, "log_content": "20kB"}) as running:
        yield running


def ends(mta: Mta) -> dict[str, dict[str, Any]]:
    """How each recipient ended."""
    return {recipient: event for event in mta.events() for recipient in event.get("recipients", [])
            if event["event"] in ("delivered", "bounced", "expired")}


def notices(sandbox: Sandbox, sender: str) -> str:
    """All notifications that came to a sender."""
    return "".join(one["content"] for one in sandbox.log() if sender in one["recipients"])


def test_in_time_or_returned(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Mode R: what is left of the time goes to hosts that keep it, to others the message does not go. One that waits
    for its turn or behind a dead site is returned at its time, after a restart as well, and not before."""
    with make_mta(workers=2, shaping={"domains": {"plain.test": {"deliver_by": "required"}}}) as mta:
        def send(number: int, to: str, by: str) -> None:
            mta.send(f"s{number}@sender.test", [to], message(number, to), mail_options=[f"BY={by}"])

        send(1, "u1@keeps.test", "600;R")
        send(2, "u2@plain.test", "600;R")
        send(3, "u3@busy.test", "8;R")
        send(4, "u4@dead.test", "8;R")
        send(5, "u5@dead.test", "600;R")
        mta.wait_until(lambda: {"u1@keeps.test", "u2@plain.test"} <= ends(mta).keys(), "the first ends")
        mta.stop()
        mta.start()
        mta.wait_until(lambda: {"u3@busy.test", "u4@dead.test"} <= ends(mta).keys(), "the end of their time")
        mta.wait_until(lambda: mta.queued() == 1, "the notifications")
        found = ends(mta)
    assert found["u1@keeps.test"]["event"] == "delivered"
    assert (found["u2@plain.test"]["event"], found["u2@plain.test"]["enhanced"]) == ("bounced", "5.3.3")
    for to in ("u3@busy.test", "u4@dead.test"):
        assert found[to]["event"] == "expired"
        assert found[to]["last_reply"].startswith("5.4.7 ")
        assert found[to]["age_s"] >= 8.0
    (told,) = [one["parameters"]["BY"] for one in sandbox.log() if one["recipients"] == ["u1@keeps.test"]]
    assert 590 <= int(told.removesuffix(";R")) <= 600
    assert "Status: 5.4.7" in notices(sandbox, "s3@sender.test")
    assert "Status: 5.4.7" in notices(sandbox, "s4@sender.test")


def test_late_and_told(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Mode N: at its time the sender is told once that it is late, and the message goes on. A host that does not know
    of times gets it, and the sender a notice of that."""
    with make_mta(workers=1) as mta:
        mta.send("s1@sender.test", ["u1@dead.test"], message(1, "u1@dead.test"), mail_options=["BY=3;N"])
        mta.send("s2@sender.test", ["u2@plain.test"], message(2, "u2@plain.test"), mail_options=["BY=60;N"])
        mta.wait_until(lambda: "Action: delayed" in notices(sandbox, "s1@sender.test"), "the notice of the delay")
        mta.wait_until(lambda: "Action: relayed" in notices(sandbox, "s2@sender.test"), "the notice of the hand-over")
        sandbox.set("dead.test", {})
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    found = ends(mta)
    assert {to: event["event"] for to, event in found.items() if to[0] == "u"} == {
        "u1@dead.test": "delivered", "u2@plain.test": "delivered"}
    assert notices(sandbox, "s1@sender.test").count("Action: delayed") == 1


def test_handover_is_delivery_where_that_is_wanted(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """`deliver_by: handover`: mode R to a host that does not offer DELIVERBY, too; the time is kept until then."""
    with make_mta(workers=1, shaping={"default": {"deliver_by": "handover"}}) as mta:
        mta.send("s@sender.test", ["u@plain.test"], message(1, "u@plain.test"), mail_options=["BY=60;R"])
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert ends(mta)["u@plain.test"]["event"] == "delivered"
