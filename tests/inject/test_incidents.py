"""What happens at the doors is told, and a flood of it does not fill the disk."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from mta.inject import incidents
from mta.inject.incidents import LOGINS, REFUSALS, Incidents


class Shelf(list[Any]):
    """The events that were written."""

    def put(self, event: bytes) -> None:
        """As `write` of an Incidents."""
        self.append(json.loads(event))


@pytest.fixture
def shelf() -> Shelf:
    """An empty one."""
    return Shelf()


def refuse(one: Incidents, client: str = "192.0.2.1", user: str = "acme") -> None:
    """A wrong password."""
    one.refused("login", client, "[::]:587", "wrong password", user=user, level=logging.WARNING)


def test_the_first_is_told_at_once_and_the_rest_once_a_minute(
        shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """Event and line in the log; as long as it goes on there is one of each in a minute, with the number."""
    caplog.set_level(logging.INFO)
    one = Incidents(shelf.put)
    began_s = one._since_s
    for _ in range(8):
        refuse(one)
    one.look(began_s + 59)
    assert [(event["event"], event["what"], event["user"], event["client"], event["listener"], event["text"],
             event["count"]) for event in shelf] == [
        ("refused", "login", "acme", "192.0.2.1", "[::]:587", "wrong password", 1)]
    one.look(began_s + 60)
    refuse(one)
    assert [event["count"] for event in shelf] == [1, 7]
    one.look(began_s + 120)
    one.look(began_s + 180)
    assert [event["count"] for event in shelf] == [1, 7, 1]
    refuse(one)
    assert [event["count"] for event in shelf] == [1, 7, 1, 1]
    text = "login of acme from [192.0.2.1] refused: wrong password"
    assert caplog.messages == [text, f"{text} (7 more)", text, text]


def test_what_differs_only_in_the_address_it_was_for_is_one(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """Who tries to relay to a thousand recipients is told of twice; so is who has a /64 of IPv6."""
    caplog.set_level(logging.INFO)
    one = Incidents(shelf.put)
    for n in range(1000):
        one.refused("mail", f"2001:db8:1:2::{n:x}", "[::]:25", "not in relay_from", detail=f"mail to <u{n}@d.example>")
    one.tell_rest()
    assert [(event["text"], event["count"]) for event in shelf] == [
        ("mail to <u0@d.example>: not in relay_from", 1), ("not in relay_from", 999)]
    assert caplog.messages[0] == "refused: mail to <u0@d.example> of [2001:db8:1:2::0]: not in relay_from"


def test_a_flood_is_bounded(shelf: Shelf) -> None:
    """Whatever comes from wherever, at most so many are told, and in memory; of the others the number."""
    one = Incidents(shelf.put)
    for n in range(10 * REFUSALS):
        refuse(one, f"192.0.{n // 256}.{n % 256}", f"user{n}")
    assert len(shelf) == len(one._refusals) == REFUSALS
    one.tell_rest()
    assert len(shelf) == REFUSALS + 1
    assert (shelf[-1]["what"], shelf[-1]["client"], shelf[-1]["count"]) == ("", "", 9 * REFUSALS)
    assert sum(event["count"] for event in shelf) == 10 * REFUSALS


def test_a_flood_of_refusals_hides_no_login(shelf: Shelf) -> None:
    """Logins are counted apart; each user, and each way, is told of once in a minute."""
    one = Incidents(shelf.put)
    for n in range(2 * REFUSALS):
        refuse(one, user=f"user{n}")
    for _ in range(3):
        one.logged_in("acme", "192.0.2.9", "[::]:587", "scram")
    one.tell_rest()
    logins = [event for event in shelf if event["event"] == "login"]
    assert [(event["user"], event["client"], event["via"], event["count"]) for event in logins] == [
        ("acme", "192.0.2.9", "scram", 1), ("acme", "192.0.2.9", "scram", 2)]
    assert LOGINS > REFUSALS


def test_a_user_name_of_any_length_is_cut(shelf: Shelf) -> None:
    """It is what a stranger said, and may be a megabyte."""
    refuse(Incidents(shelf.put), user="x" * 100_000)
    assert len(shelf[0]["user"]) == incidents._USER_LIMIT
