"""The demo says that every message is accounted for only when the three books agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mta.demo.account import Account, compare
from mta.sandbox.client import Received
from tests.demo.helpers import NO_FAULTS, Events, injection, watch

ONE, TWO = ("<1@x>", "a@d.example"), ("<2@x>", "b@d.example")


def books() -> Events:
    """Two messages, one delivered, one bounced."""
    return Events().received(*ONE).received(*TWO).delivered(*ONE).bounced(*TWO)


def account(events: Events, received: list[Received], accepted: tuple[tuple[str, str], ...] = (ONE, TWO),
            stats: dict[str, Any] = NO_FAULTS, at_rest: bool = True) -> Account:
    return compare(len(accepted), injection(accepted), events.tally, received, stats, at_rest=at_rest)


def test_books_that_agree_are_good() -> None:
    """Accepted = delivered + bounced, and exactly what was delivered has arrived, once."""
    result = account(books(), [Received(*ONE, 1)])

    assert result.good
    assert (result.accepted, result.delivered, result.bounced, result.queued, result.arrived) == (2, 1, 1, 0, 1)


def test_what_did_not_arrive_is_missed() -> None:
    """A delivered event without an arrival is lost mail."""
    result = account(books(), [])

    assert not result.good
    assert "the receivers have not got it, such as <1@x> to a@d.example" in result.problems[0]


def test_what_arrived_although_it_bounced_is_told() -> None:
    """The receivers have mail that the MTA says it could not deliver."""
    assert "without an event" in account(books(), [Received(*ONE, 1), Received(*TWO, 1)]).problems[0]


def test_a_duplicate_is_a_problem_unless_it_was_announced() -> None:
    """Twice is allowed only where an event says `maybe_duplicate` (I2)."""
    assert "arrived twice" in account(books(), [Received(*ONE, 2)]).problems[0]

    announced = Events().received(*ONE).received(*TWO).delivered(*ONE, maybe_duplicate=True).bounced(*TWO)
    result = account(announced, [Received(*ONE, 2)])
    assert result.good
    assert (result.twice, result.twice_announced) == (1, 1)


def test_a_second_end_is_a_problem() -> None:
    """Every recipient ends once."""
    assert "ended twice" in account(books().delivered(*TWO), [Received(*ONE, 1)]).problems[0]


def test_what_was_accepted_must_be_recorded() -> None:
    """A 250 without a `received` event is mail that the MTA has forgotten."""
    three = ("<3@x>", "c@d.example")
    assert "no record" in account(books(), [Received(*ONE, 1)], (ONE, TWO, three)).problems[0]


def test_what_was_accepted_a_moment_ago_has_no_end_yet(tmp_path: Path) -> None:
    """Its event may be missing in the books while the MTA runs: that is no problem, and the demo is not over."""
    three = ("<3@x>", "c@d.example")
    made = account(books(), [Received(*ONE, 1), Received(*three, 1)], (ONE, TWO, three), at_rest=False)
    assert (made.problems, made.queued, made.good) == ([], 1, False)
    looked = watch(tmp_path, books().tally)
    looked.injection.accepted.update((ONE, TWO, three))
    looked.injection.ended_s = 1.0
    assert not looked.finished
    looked.injection.accepted.remove(three)
    assert looked.finished


def test_what_was_never_accepted_must_not_be_recorded_unless_in_doubt() -> None:
    """When the answer to the final dot was lost, either is right."""
    sent = injection([ONE])
    assert "never accepted" in compare(1, sent, books().tally, [Received(*ONE, 1)], NO_FAULTS, at_rest=True).problems[0]

    sent.in_doubt.add(TWO)
    assert compare(1, sent, books().tally, [Received(*ONE, 1)], NO_FAULTS, at_rest=True).good


def test_mail_in_the_queue_is_not_settled_but_no_problem() -> None:
    """Time was over: it says so, and nothing else."""
    events = Events().received(*ONE).received(*TWO).delivered(*ONE).deferred(*TWO)
    result = account(events, [Received(*ONE, 1)])

    assert (result.queued, result.settled, result.good, result.problems) == (1, False, False, [])


def test_what_is_in_flight_when_the_mta_stops_may_have_arrived() -> None:
    """It is still in the queue; its event was not written any more."""
    events = Events().received(*ONE).received(*TWO).delivered(*ONE)
    result = account(events, [Received(*ONE, 1), Received(*TWO, 1)])

    assert result.problems == []


def test_notices_are_accounted_for_apart() -> None:
    """The MTA's own messages to senders have to arrive, too, but are no part of the campaign."""
    notice = ("<n@mta>", "bounces@x.example")
    events = books().received(*notice, origin="dsn").delivered(*notice)

    lost = account(events, [Received(*ONE, 1)])
    assert len(lost.problems) == 1
    found = account(events, [Received(*ONE, 1), Received(*notice, 1)])
    assert found.good
    assert (found.accepted, found.notices, found.notices_arrived) == (2, 1, 1)


def test_damage_and_bad_manners_are_problems() -> None:
    """What the receivers saw of damaged content or protocol faults."""
    violation = {"bare_lf": {"count": 3, "example": "127.0.0.1:1 b'x'"}}
    result = account(books(), [Received(*ONE, 1)], stats={"damaged": 1, "violations": violation})

    assert result.problems == ["1 messages arrived damaged", "the receivers saw 3 x bare_lf, as in 127.0.0.1:1 b'x'"]
