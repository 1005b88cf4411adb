"""A site that fails, and several workers that have mail for it.

Each scenario is a function of `breaker_program`, whose docstring is the rule; it runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCENARIOS = (
    "one_worker_finds_out_and_one_probes", "a_burst_of_all_is_one_outage", "others_wait_for_the_probe_and_say_so",
    "a_probe_that_was_taken_is_one_no_more", "a_probe_that_ends_without_a_verdict_is_another_ones",
    "who_has_not_heard_of_it_yet_does_not_probe_again", "a_probe_is_none_any_more_when_another_worker_was_served",
    "an_outage_after_the_one_that_is_known_is_news", "a_failure_after_an_outage_that_is_news_is_the_next_of_that",
    "mail_that_waits_for_a_probe_that_is_not_made_goes_on", "a_worker_that_is_killed_while_it_probes",
    "who_is_served_goes_by_what_it_sees", "a_worker_that_starts_again_knows", "an_operators_chance_is_one_for_all",
    "a_full_table_leaves_each_to_itself",
)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_breaker(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    done = subprocess.run([sys.executable, "-m", "tests.delivery.breaker_program", scenario], capture_output=True,
                          text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
