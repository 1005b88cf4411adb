"""One reason in one line."""

from __future__ import annotations

import pytest

from mta.delivery.reason import Reason

SECOND = 1_000_000


@pytest.mark.parametrize(("seconds", "words"), [
    (59, "59 s"), (119, "119 s"), (3595, "59 min"), (7199, "119 min"), (7200, "2 h"), (86_400, "24 h"),
])
def test_what_stands_still_says_how_long_in_a_unit_that_people_read(seconds: int, words: str) -> None:
    """Nobody has to divide 3595 seconds at night."""
    reason = Reason("suspension", "mx1 is suspended: 550 listed", 0, seconds * SECOND)
    assert reason.brief(0) == f"mx1 is suspended for another {words}: 550 listed"
