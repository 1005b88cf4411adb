"""The operator's hand, end to end: a real MTA, real commands, mail that flows meanwhile."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bench import slowdisk
from bench.fill import fill as fill_spool
from mta.queue.encoding import pack, unpack
from mta.queue.ids import format_id
from mta.queue.index import DELIVERY_KEY
from mta.queue.orders import SWEEPS
from mta.sandbox.client import Sandbox
from tests.integration.support import ENDS, Injector, Mta, ends_of, message
from tests.queue.damage import records

MAKE = Callable[..., Mta]
SLOW = {"retry": {"first": "1h", "cap": "1h"}}


def order(mta: Mta, *words: str) -> dict[str, Any]:
    """Give an order by its command."""
    found: dict[str, Any] = json.loads(mta.command(*words, "--yes", "--json"))
    return found


def fill(mta: Mta, count: int, domains: list[str]) -> set[int]:
    """Send `count` messages; the numbers that were accepted."""
    injector = Injector(mta, domains)
    injector.start(count)
    injector.wait()
    assert len(injector.accepted) == count
    return injector.accepted


def is_over(mta: Mta) -> bool:
    """Whether no sweep is in force. The orders tell, not their progress, of which a worker that starts says nothing."""
    said = mta.command("orders", check=False)  # nothing while nobody answers
    return said != "" and re.search(rf"(?m)^ *\d+ +(?:{'|'.join(SWEEPS)}) ", said) is None


def told(mta: Mta, kind: str) -> list[dict[str, Any]]:
    """All events of a kind."""
    return [event for event in mta.events() if event["event"] == kind]


def test_a_paused_domain_waits_and_others_go_on(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Paused while mail flows: what comes is accepted and kept, also over a restart; resumed, all of it arrives."""
    with make_mta() as mta:
        order(mta, "pause", "--domain", "held.test", "--reason", "a test")
        fill(mta, 200, ["held.test", "free.test"])
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 100))
        row = json.loads(mta.command("queue", "list", "held.test", "--json"))
        assert (row["state"], row["deliveries"]) == ("paused", 100)
        assert "a test" in row["reason"]
        mta.stop()
        mta.start()
        fill(mta, 100, ["also-free.test"])
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 200))
        mta.wait_until(lambda: mta.queued() == 100, "the held ones alone in the queue")
        mta.command("resume", "domain=\"held.test\"")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.stats()["distinct"] == 300
    assert [(one["command"], one["state"]) for one in told(mta, "order")] == [("pause", "given"), ("pause", "ended")]
    ends, _ = ends_of(mta.events())
    assert set(ends.values()) == {1}
    assert len(ends) == 300


def test_a_tenant_is_paused_while_mail_flows(make_mta: MAKE, sandbox: Sandbox) -> None:
    """One tenant's mail to a domain waits, the others' to the same domain goes on; a dry run counted it before."""
    with make_mta() as mta:
        injector = Injector(mta, ["d.test"], sessions=4)
        injector.start(400)
        answer = order(mta, "pause", "--tenant", "acme")
        assert answer["touched"]["deliveries"] == 0
        for number in range(10):
            mta.send("a@x.test", [f"v{number}@d.test"], b"X-Tenant: acme\r\n" + message(1000 + number, "v@d.test"))
        injector.wait()
        sandbox.wait_for(lambda stats: bool(stats["messages"] == 400))
        mta.wait_until(lambda: mta.queued() == 10, "the ten alone in the queue")
        assert "10 deliveries to 10 recipients in 1 queue" in mta.command("pause", "tenant=acme", "--dry-run")
        mta.command("resume", "--all")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.stats()["distinct"] == 410


def test_single_deliveries_are_held_and_released(make_mta: MAKE, sandbox: Sandbox) -> None:
    """A pause by recipient holds those alone, of the same queue; a frozen message stays until it is let go."""
    with make_mta() as mta:
        order(mta, "pause", "recipient=u1@*")
        fill(mta, 10, ["d.test"])
        mta.wait_until(lambda: mta.queued() == 1, "one left")
        shown = json.loads(mta.command("queue", "show", "d.test", "--json"))
        assert shown["recipients"][0]["address"] == "u1@d.test"
        assert "paused by order" in shown["reason"]
        order(mta, "freeze", shown["message"])
        mta.command("resume", "recipient=u1@*")
        mta.wait_until(lambda: is_over(mta), "the sweep")
        detail = json.loads(mta.command("message", shown["message"], "--json"))
        assert "frozen by order" in detail["deliveries"][0]["reason"]
        mta.command("resume", shown["message"])
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.stats()["distinct"] == 10


def test_a_queue_is_deleted_while_it_is_delivered(make_mta: MAKE, sandbox: Sandbox) -> None:
    """None is delivered after the order is confirmed, each recipient has one end, and mail that comes later is not
    meant."""
    sandbox.set("slow.test", {"latency": "100ms", "connections": 2})
    with make_mta() as mta:
        accepted = len(fill(mta, 600, ["slow.test"]))
        answer = order(mta, "delete", "domain=slow.test", "--reason", "wrong list")
        delivered = sandbox.stats()["messages"]
        mta.send("a@x.test", ["later@slow.test"], message(100_000, "later@slow.test"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.wait_until(lambda: is_over(mta), "the sweep")
        assert answer["missing"] == []
        assert sandbox.stats()["messages"] <= delivered + answer["in_flight"] + 1
    ends, last = ends_of(mta.events())
    assert set(ends.values()) == {1}
    assert len(ends) == accepted + 1
    kinds = Counter(event["event"] for event in last.values())
    assert kinds["deleted"] + kinds["delivered"] == accepted + 1
    assert kinds["deleted"] > 0
    assert [event["event"] for (_, to), event in last.items() if to == "later@slow.test"] == ["delivered"]
    assert {event["reason"] for event in told(mta, "deleted")} == {"wrong list"}
    assert [(one["state"]) for one in told(mta, "order")] == ["given", "done"]


def test_waiting_mail_is_retried_and_expired(make_mta: MAKE, sandbox: Sandbox) -> None:
    """What waits an hour for its retry goes at once; what is expired leaves the queue with its event."""
    later = {"rules": [{"at": "rcpt", "reply": "451 4.3.0 later"}]}
    sandbox.set("a.test", later)
    sandbox.set("b.test", later)
    with make_mta(**SLOW) as mta:
        fill(mta, 40, ["a.test", "b.test"])
        mta.wait_until(lambda: len(told(mta, "deferred")) == 40, "first attempts")
        sandbox.set("a.test", {})
        assert order(mta, "retry", "--domain", "a.test")["touched"]["deliveries"] == 20
        mta.wait_until(lambda: mta.queued() == 20, "delivery of those")
        assert order(mta, "expire", "attempts>=1", "and", "domain=b*")["touched"]["deliveries"] == 20
        mta.wait_until(lambda: len(told(mta, "expired")) == 20, "the end of the others")
    assert {event["order"] for event in told(mta, "expired")} == {"3"}
    ends, _ = ends_of(mta.events())
    assert set(ends.values()) == {1}


def test_a_long_queue_is_swept_across_a_kill(make_mta: MAKE, sandbox: Sandbox) -> None:
    """20,000 deliveries, half of them deleted, and everything killed in the middle, twice: it goes on by itself, each
    recipient has one end, others stay, and live mail is delivered meanwhile.

    On a disk with which the sweep takes six seconds at least: it is not over before the command has its answer."""
    mta = make_mta(**SLOW)
    if slowdisk.missing() is None:
        mta.environment = slowdisk.environment(60.0, mta.directory)
    fill_spool(mta.directory / "spool", 20_000, 20, 2, size=500, spread_s=400_000)
    with mta:
        before = sum(1 for event in mta.events() if event["event"] in ENDS)
        answer = order(mta, "delete", "domain=d?.dead", "and", "not", "recipient=u0@*")
        assert answer["missing"] == []
        for _ in range(2):
            mta.kill()
            assert len(told(mta, "deleted")) < 9_900
            mta.start()
        fill(mta, 100, ["live.test"])
        mta.wait_until(lambda: is_over(mta), "the end of the sweep", 300)
        # The numbers of the queue are those of the last checkpoint.
        mta.wait_until(lambda: len(ends_of(mta.events())[0]) + mta.queued() == 20_000 + 100, "accounts that balance")
        assert '"d5.dead"' not in mta.command("queue", "list", "d5.dead", "--json")
    assert before < 100
    ends, last = ends_of(mta.events())
    assert set(ends.values()) == {1}
    deleted = {to for (_, to), event in last.items() if event["event"] == "deleted"}
    assert {to.partition("@")[2] for to in deleted} == {f"d{number}.dead" for number in range(10)}
    assert 9_900 < len(deleted) < 10_000


def test_a_sweep_ends_although_records_cannot_be_read(make_mta: MAKE, sandbox: Sandbox) -> None:
    """It goes on behind them, says in its event and in the log how many there were, and is over; the mail that can be
    read has its end. A sweep of one message whose record is damaged ends as well."""
    mta = make_mta(**SLOW)
    fill_spool(mta.directory / "spool", 400, 4, 2, size=500, spread_s=400_000)
    broken = []
    with records(mta.directory / "spool/shards/000") as (txn, db):
        deliveries = [(key, value) for key, value in txn.cursor(db["messages"]) if len(key) == DELIVERY_KEY.size]
        for key, value in deliveries[10:13]:
            txn.put(key, value[:20] + b"\xc1" + value[21:], db=db["messages"])
            broken.append(format_id(DELIVERY_KEY.unpack(key)[0]))
        key, value = deliveries[50]
        fields = list(unpack(value[20:]))
        fields[7] = [(1, "mx", 451)]
        txn.put(key, value[:20] + pack(fields), db=db["messages"])
    with mta:
        order(mta, "retry", f"message={broken[0]}")
        order(mta, "delete", "reply~later or domain=x")
        mta.wait_until(lambda: is_over(mta), "the end of the sweeps")
        mta.wait_until(lambda: mta.queued() == 4, "what cannot be read alone in the queue")
    done = {event["command"]: event["unreadable"] for event in told(mta, "order") if event["state"] == "done"}
    assert done == {"retry": 1, "delete": 4}
    ends, last = ends_of(mta.events())
    assert set(ends.values()) == {1}
    assert len(ends) == 396
    assert Counter(event["event"] for event in last.values())["deleted"] > 390  # a few are due at once
    assert any("(delete) is done in shard 0 but for 4 records" in line for line in mta.log)


def test_suspensions_and_limits_hold_over_a_restart(make_mta: MAKE, sandbox: Sandbox) -> None:
    """A suspended domain waits while others go; ended, its mail goes at once."""
    with make_mta() as mta:
        order(mta, "suspend", "domain=d.test", "--reason", "listed")
        fill(mta, 40, ["d.test", "e.test"])
        mta.wait_until(lambda: mta.queued() == 20, "the others")
        row = json.loads(mta.command("queue", "list", "d.test", "--json"))
        assert row["state"] == "suspended"
        assert "listed" in row["reason"]
        mta.stop()
        mta.start()
        assert mta.queued() == 20
        mta.command("unsuspend", "domain=d.test")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")


def test_mail_is_rerouted(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Another pool from now on, for mail that waits, too; and back when the order ends."""
    pools = {"sources": {"one": {"ipv4": "127.0.0.1"}, "two": {"ipv4": "127.0.0.2"}},
             "pools": {"default": {"one": 1}, "other": {"two": 1}}}
    with make_mta(**pools) as mta:
        order(mta, "reroute", "other", "domain=d.test")
        fill(mta, 20, ["d.test", "e.test"])
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.command("reroute", "off", "domain=d.test")
        mta.send("a@x.test", ["back@d.test"], message(100, "back@d.test"))
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    by = {to: event["source_address"] for event in told(mta, "delivered") for to in event["recipients"]}
    assert {address.partition(":")[0] for to, address in by.items() if "d.test" in to and to != "back@d.test"} == {
        "127.0.0.2"}
    assert {address.partition(":")[0] for to, address in by.items() if "e.test" in to or to == "back@d.test"} == {
        "127.0.0.1"}


def test_single_deliveries_are_rerouted(make_mta: MAKE, sandbox: Sandbox) -> None:
    """By their sender, while the source of their own pool is suspended: what waits and what comes leaves by the other
    pool, the rest waits. It stays so over kill -9, is said, and what has not left at the end goes by its own pool."""
    pools = {"sources": {"one": {"ipv4": "127.0.0.1"}, "two": {"ipv4": "127.0.0.2"}},
             "pools": {"default": {"one": 1}, "other": {"two": 1}}}

    def send(mta: Mta, sender: str, *numbers: int) -> set[str]:
        tos = {f"{sender}{number}@d.test" for number in numbers}
        for to in tos:
            mta.send(f"{sender}@x.test", [to], message(100, to))
        return tos

    def by(address: str) -> set[str]:
        return {event["recipients"][0] for event in told(mta, "delivered")
                if event["source_address"].partition(":")[0] == address}

    with make_mta(**pools) as mta:
        order(mta, "suspend", "source=one")
        others, waiting = send(mta, "b", *range(10)), send(mta, "a", *range(10))
        number = order(mta, "reroute", "other", "sender=a@x.test")["orders"][0]["number"]
        waiting |= send(mta, "a", 10, 11)
        mta.wait_until(lambda: by("127.0.0.2") == waiting, "what waited and what came since")
        mta.wait_until(lambda: mta.queued() == 10, "a checkpoint")
        order(mta, "suspend", "source=two")
        waiting |= send(mta, "a", 20, 21, 22)
        text = f"it goes by pool other by order {number} of "
        row = json.loads(mta.command("queue", "list", f"d.test//{number}", "--json"))
        assert (row["deliveries"], row["state"], text in row["reason"]) == (3, "suspended", True)
        found = [json.loads(line) for line in mta.command("explain", "d.test", "--json").splitlines()]
        said = {one["name"]: one["reasons"][-1]["text"] for one in found if one["what"] in ("queue", "delivery")}
        assert said[f"d.test//{number}"].startswith(text)
        assert text not in said["d.test"]
        [one] = [one for one in found if one["recipients"] == ["a20@d.test"]]
        assert text in mta.command("message", one["message"].partition("/")[0])
        mta.kill()
        mta.start()
        assert mta.queued() == 13
        mta.command("unsuspend", "source=two")
        mta.wait_until(lambda: by("127.0.0.2") == waiting, "what waited over the restart")
        order(mta, "suspend", "source=two")
        back = send(mta, "a", 30, 31, 32)
        mta.command("reroute", "off", "sender=a@x.test")
        back |= send(mta, "a", 33)
        mta.command("unsuspend", "source=one")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert by("127.0.0.1") == others | back
    assert by("127.0.0.2") == waiting
    assert set(ends_of(mta.events())[0].values()) == {1}
    assert [(one["command"], one["state"]) for one in told(mta, "order") if one["command"] == "reroute"] == [
        ("reroute", "given"), ("reroute", "ended")]


def test_a_long_queue_is_rerouted_across_a_kill(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Everything is killed in the middle of the move, twice: it goes on by itself, each delivery is in one queue, and
    leaves once, by the pool that it is to go by."""
    mta = make_mta(**SLOW, sources={"one": {"ipv4": "127.0.0.1"}, "two": {"ipv4": "127.0.0.2"}},
                   pools={"default": {"one": 1}, "other": {"two": 1}})
    fill_spool(mta.directory / "spool", 4_000, 2, 2, size=500, spread_s=400_000)
    with mta:
        before = sum(1 for event in mta.events() if event["event"] in ENDS)
        number = order(mta, "reroute", "other", "domain=d?.dead and not recipient=u1??@*")["orders"][0]["number"]
        for _ in range(2):
            mta.kill()
            mta.start()

        def moved() -> bool:
            said = mta.command("orders", "--json", check=False)
            row = json.loads(said) if said else {"shards": 0}
            return row["shards"] == row["shards_done"] == 2

        mta.wait_until(moved, "the end of the move", 300)
        rows = [json.loads(line) for line in mta.command("queue", "list", "--json").splitlines()]
        sizes = {row["name"]: row["deliveries"] for row in rows}
        assert sum(sizes.values()) == 4_000 - sum(1 for event in mta.events() if event["event"] in ENDS)
        assert sizes["d0.dead"] == sizes["d1.dead"] == 50
        assert set(sizes) == {"d0.dead", "d1.dead", f"d0.dead//{number}", f"d1.dead//{number}"}
        order(mta, "retry", "queue=*")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue", 300)
    assert before < 20
    ends, last = ends_of(mta.events())
    assert (len(ends), set(ends.values())) == (4_000, {1})
    by_own = {to for (_, to), event in last.items() if event["source_address"].partition(":")[0] == "127.0.0.1"}
    assert {f"u{n}@d{n % 2}.dead" for n in range(100, 200)} <= by_own
    assert len(by_own) < 100 + 20 + before  # what was due at once may have been under way by its own


def test_nothing_is_ordered_without_a_word(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Without a terminal an order needs --yes; a dry run orders nothing; a wrong filter says where."""
    with make_mta() as mta:
        assert "is 0 deliveries" in mta.command("delete", "queue=*", check=False)
        assert "is 0 deliveries" in mta.command("delete", "queue=*", "--dry-run")
        assert mta.command("orders") == "no orders are in force\n"
        with pytest.raises(AssertionError, match=r"exit 64\n\n.*column 1: no field 'tenat'.*did you mean tenant"):
            mta.command("pause", "tenat=x", "--yes")
        with pytest.raises(AssertionError, match="exit 66"):
            mta.command("resume", "tenant=x")


def test_a_retry_now_gives_paths_that_failed_another_chance(make_mta: MAKE, sandbox: Sandbox) -> None:
    """Mail to hosts that are down stands still with its path: a retry leaves that alone, `--now` tries it at once;
    other paths and what is paused stay as they are, and no attempt was counted.

    One worker: of several that are refused at the same time only the first takes it for an outage, the others try again
    soon."""
    down = ["down.test", "other.test"]
    for name in (*down, "held.test"):
        sandbox.set(name, {"listening": False})
    with make_mta(workers=1, retry={"first": "1h", "cap": "1h", "site_first": "1h", "site_cap": "1h"}) as mta:
        def states() -> dict[str, str]:
            rows = map(json.loads, mta.command("queue", "list", "--json").splitlines())
            return {row["name"]: row["state"] for row in rows}

        fill(mta, 60, [*down, "held.test"])
        mta.wait_until(lambda: states() == dict.fromkeys((*down, "held.test"), "suspended"), "paths that stand still")
        order(mta, "pause", "--domain", "held.test")
        for name in (*down, "held.test"):
            sandbox.set(name, {})
        order(mta, "retry", "queue=*")
        mta.wait_until(lambda: is_over(mta), "the sweep")
        assert states() == {"down.test": "suspended", "other.test": "suspended", "held.test": "paused"}
        assert sandbox.stats()["messages"] == 0
        order(mta, "retry", "domain=down.test or domain=held.test", "--now")
        mta.wait_until(lambda: mta.queued() == 40, "the mail of one host")
        assert states() == {"other.test": "suspended", "held.test": "paused"}
        order(mta, "retry", "domain=other.test", "--now")
        mta.wait_until(lambda: mta.queued() == 20, "the mail of the other")
        mta.command("resume", "--all")
        order(mta, "retry", "queue=*", "--now")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert {event["attempt"] for event in told(mta, "delivered")} == {1}
    assert set(ends_of(mta.events())[0].values()) == {1}


def test_who_sent_what_is_deleted_hears_of_it_if_that_is_wanted(make_mta: MAKE, sandbox: Sandbox) -> None:
    """`delete --notify` sends one notification for each message, with the reason, but none for a null sender; without
    it nobody hears anything. What is notified is not deleted itself."""
    sandbox.set("later.test", {"rules": [{"at": "rcpt", "reply": "451 4.3.0 later"}]})
    with make_mta(**SLOW) as mta:
        for number in range(30):
            sender = "" if number % 10 == 9 else f"s{number}@{'loud' if number < 20 else 'quiet'}.test"
            mta.send(sender, [f"u{number}@later.test"], message(number, "u@later.test"))
        mta.wait_until(lambda: len(told(mta, "deferred")) == 30, "first attempts")
        order(mta, "delete", 'sender=*@loud.test or sender=""', "--notify", "--reason", "sent by mistake")
        mta.wait_until(lambda: mta.queued() == 9, "the others")
        order(mta, "delete", "queue=*")
        mta.wait_until(lambda: mta.queued() == 0 and is_over(mta), "an empty queue")
    assert Counter(event["recipients"][0] for event in told(mta, "delivered")) == {
        f"s{number}@loud.test": 1 for number in range(20) if number % 10 != 9}
    notified = told(mta, "notified")
    assert len(notified) == 18
    assert {event["action"] for event in notified} == {"failed"}
    assert Counter(event["reason"] for event in told(mta, "deleted")) == {"sent by mistake": 21, "": 9}
    assert set(ends_of(mta.events())[0].values()) == {1}


def test_a_limit_holds_for_all_workers_until_it_is_taken_off(make_mta: MAKE, sandbox: Sandbox) -> None:
    """One connection by all workers together, as the receiver counts them, also after a restart; `explain` names the
    order; taken off there are more."""
    sandbox.set("slow.test", {"latency": "20ms"})
    with make_mta() as mta:
        path = "mx1.slow.test"
        order(mta, "limit", path, "connections=1", "for", "1h", "--reason", "a test")
        fill(mta, 60, ["slow.test"])
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.stop()
        mta.start()
        fill(mta, 100, ["slow.test"])
        assert "a test" in mta.command("explain", path)
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        assert sandbox.domain("slow.test")["max_open"] == 1
        mta.command("limit", path, "off")
        assert mta.command("orders") == "no orders are in force\n"
        fill(mta, 100, ["slow.test"])
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    assert sandbox.domain("slow.test")["max_open"] > 1
    assert set(ends_of(mta.events())[0].values()) == {1}
