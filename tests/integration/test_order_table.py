"""Each order with each way of saying which mail: it works, on real mail."""

from __future__ import annotations

import io
import itertools
import json
import shlex
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from mta.cli import main
from mta.control.spool import check_version
from mta.queue.records import Attempt, Delivery, Message, Recipient, queue_name
from mta.queue.store import Transaction
from mta.sandbox.client import Sandbox
from tests.integration.support import Mta, ends_of
from tests.integration.test_orders import is_over, told
from tests.queue.helpers import Bench

CONTENT = b"From: a@x.test\r\nSubject: x\r\n\r\nbody\r\n"
VERBS = ("pause", "suspend", "retry", "expire", "delete", "reroute")
SELECTORS = ("domain", "provider", "queue", "tenant", "campaign", "source", "sender", "age", "filter")
ENDED_BY = {"pause": ("resume",), "suspend": ("unsuspend",), "reroute": ("reroute", "off")}
SOURCES = {"sources": {f"out{n}": {"ipv4": f"127.0.0.{n}"} for n in (1, 2, 3)},
           "pools": {"default": {"out1": 1}, "other": {"out2": 1}, "third": {"out3": 1}}}


class Cell(NamedTuple):
    """One order, and two messages: one that it means, and another."""

    number: int
    verb: str
    selector: str

    @property
    def expression(self) -> str:
        """Which mail is meant."""
        n, age_s = self.number, self.age_s
        if self.verb == "suspend" and self.selector == "source":
            return "source=out3"
        return {
            "domain": f"domain=m{n}.test", "provider": f"provider=prov-{n}", "queue": f"queue={self.queue('m')}",
            "tenant": f"tenant=mt{n}", "campaign": f"campaign=mc{n}", "source": f"source=msrc{n}",
            "sender": f"sender=s@m{n}.from", "age": f"age>{age_s - 600}s and age<{age_s + 600}s",
            "filter": f"(tenant=mt{n} or tenant=none) and not recipient=v@*",
        }[self.selector]

    @property
    def age_s(self) -> int:
        """Of what is meant."""
        return 3600 * (self.number + 1)

    def queue(self, kind: str) -> str:
        """The queue of what is meant (`m`), or of the other one (`o`)."""
        pool = "third" if kind == "m" and self.verb == "suspend" and self.selector == "source" else ""
        return queue_name(f"{kind}{self.number}.test", f"{kind}t{self.number}", f"{kind}c{self.number}", pool)


CELLS = [Cell(number, *both) for number, both in enumerate(itertools.product(VERBS, SELECTORS))]


def fill(spool: Path) -> None:
    """The mail of all cells, tried once and due in some hours."""
    spool.mkdir(parents=True)
    check_version(str(spool))
    directory = spool / "shards" / "000"
    directory.mkdir(parents=True)
    now_us = time.time_ns() // 1000
    bench = Bench(directory, now_us=now_us)
    for cell, kind in itertools.product(CELLS, "mo"):
        n = cell.number
        arrival_us = now_us - (cell.age_s + 1800 * (kind == "o")) * 1_000_000
        queue = cell.queue(kind)
        message = Message(bench.ids.next(), f"s@{kind}{n}.from", arrival_us, CONTENT, size=len(CONTENT), deliveries=1,
                          tenant=f"{kind}t{n}", campaign=f"{kind}c{n}")
        one = Delivery(message, 0, queue, f"{kind}{n}.test", [Recipient(f"u@{kind}{n}.test")], now_us + 36_000_000_000,
                       1, history=[Attempt(arrival_us, "mx", "451 4.3.0 later")], source=f"{kind}src{n}")
        assert bench.commit(Transaction([(message, [one])])) is None
    bench.checkpoint()
    bench.close()


def typed(mta: Mta, *words: str) -> tuple[int, str, str]:
    """What a command of an operator comes to: exit code, output, complaints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*words, "--run", str(mta.directory / "run")])
    return code, out.getvalue(), err.getvalue()


def of(cells: list[Cell], kind: str) -> set[str]:
    """The recipients of these."""
    return {f"u@{kind}{cell.number}.test" for cell in cells}


def test_every_order_takes_every_selector(make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """What is paused or suspended stays and says which order holds it, what is retried goes at once, what is expired or
    deleted is, what is rerouted goes by the other pool; in each case what is meant alone, counted before by a dry run.
    What was ordered is ended with the same words."""
    providers = {f"prov-{cell.number}": {"match": {"mx": f"*.m{cell.number}.test"}}
                 for cell in CELLS if cell.selector == "provider"}
    shaping = {"default": {"retry": {"first": "10h", "cap": "10h"}, "expires": "10d"}, "providers": providers}
    mta = make_mta(workers=1, **SOURCES, shaping=shaping)
    fill(mta.directory / "spool")
    with mta:
        numbers: dict[Cell, int] = {}
        for cell in CELLS:
            pool = ["other"] if cell.verb == "reroute" else []
            code, out, err = typed(mta, cell.verb, *pool, cell.expression, "--dry-run")
            assert (code, err) == (0, ""), cell
            if cell.expression != "source=out3":  # how much goes by a source nobody knows before it does
                assert "is 1 delivery to 1 recipient in 1 queue now" in out, (cell, out)
            code, out, err = typed(mta, cell.verb, *pool, cell.expression, "--yes", "--json")
            assert (code, err) == (0, ""), cell
            numbers[cell] = json.loads(out)["orders"][0]["number"]
        cells = {verb: [cell for cell in CELLS if cell.verb == verb] for verb in VERBS}
        mta.wait_until(lambda: is_over(mta), "the sweeps")
        mta.wait_until(lambda: delivered(mta) == of(cells["retry"], "m"), "what is retried, and nothing else")

        held = [*cells["pause"], *cells["suspend"]]
        typed(mta, "retry", "queue=*", "--yes")
        everything = of(CELLS, "m") | of(CELLS, "o")
        gone = of(cells["expire"], "m") | of(cells["delete"], "m")
        free = everything - gone - of(held, "m")
        mta.wait_until(lambda: free <= delivered(mta), "all that nothing holds")
        assert delivered(mta) & everything == free
        by_other = {event["recipients"][0] for event in told(mta, "delivered")
                    if event["source_address"].partition(":")[0] == "127.0.0.2"}
        assert by_other == of(cells["reroute"], "m")
        for cell in held:
            _, out, _ = typed(mta, "explain", f"domain=m{cell.number}.test", "--json")
            rows = [json.loads(line) for line in out.splitlines()]
            [delivery] = [row for row in rows if row["what"] == "delivery"]
            text = delivery["reasons"][-1]["text"]
            assert f"order {numbers[cell]} of" in text, (cell, delivery)
            assert delivery["state"] == ("paused" if cell.verb == "pause" else "suspended"), (cell, delivery)
            _, out, _ = typed(mta, "queue", "list", cell.queue("m"), "--json")
            assert json.loads(out)["state"] in ("paused", "suspended"), (cell, out)

        for cell in [*held, *cells["reroute"]]:
            code, out, err = typed(mta, *ENDED_BY[cell.verb], *shlex.split(cell.expression))
            assert (code, err) == (0, ""), cell
            assert out.startswith(f"order {numbers[cell]} is ended: {cell.verb}"), (cell, out)
        mta.wait_until(lambda: is_over(mta), "the release")
        typed(mta, "retry", "queue=*", "--yes")
        mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
        mta.wait_until(lambda: is_over(mta), "the last retry")
        assert typed(mta, "orders")[1] == "no orders are in force\n"
    for verb, kind in (("expire", "expired"), ("delete", "deleted")):
        ended = {event["recipients"][0]: int(event["order"]) for event in told(mta, kind)}
        assert ended == {f"u@m{cell.number}.test": numbers[cell] for cell in cells[verb]}
    assert set(ends_of(mta.events())[0].values()) == {1}


def delivered(mta: Mta) -> set[str]:
    """Who has got mail; notifications to senders do not count."""
    found: list[dict[str, Any]] = told(mta, "delivered")
    return {event["recipients"][0] for event in found if not event["recipients"][0].startswith("s@")}
