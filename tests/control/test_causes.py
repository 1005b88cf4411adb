"""Causes of waiting with their counts (mta.control.causes); tests/integration/test_explain.py has those of mail."""

from __future__ import annotations

from mta.control.causes import Causes
from mta.delivery.reason import Reason


def test_what_many_wait_for_is_changed_for_more_than_one_message() -> None:
    """A thousand deliveries that a reply deferred: the command that is named is not for the first one alone."""
    causes = Causes()
    for number in range(3):
        text = f"attempt 1 was deferred by mx: 452 4.2.2 Mailbox full {number}@a.test; attempt 2 follows"
        reason = Reason("retry", text, 1, 2, f"`mta retry message={number}` tries it now", {"attempts": 1})
        causes.count(reason, "news:acme@a.test/clean", f"{number}/0", 1)
    (row,) = causes.rows
    assert (row.deliveries, row.text) == (3, "deferred: 452 4.2.2 Mailbox full …")
    assert row.remedy == "`mta retry --domain a.test` tries it now; `retry` in shaping sets the schedule"
