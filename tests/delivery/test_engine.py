"""The engine when something goes wrong or is limited: nothing gets stuck, ends twice, or goes round in circles.

Each scenario is a function of `engine_program`, `connections_program` or `ageing_program`, whose docstring is the rule;
it runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCENARIOS = (
    "a_bug_while_opening", "lost_before_a_cold_delivery", "a_bug_in_settling", "a_bug_in_beginning",
    "content_that_comes_late_from_disk", "one_outage_is_one_failure", "a_poisonous_message",
    "a_reload_while_a_route_is_looked_up", "a_failed_lookup_is_believed_as_long_as_it_is_remembered",
    "why_a_lookup_is_made_again", "what_is_told_at_the_moment_a_pause_ends", "a_host_that_trickles", "why_mail_waits",
    "a_host_that_is_slow_with_each_recipient", "nothing_is_begun_while_outcomes_cannot_be_written",
    "no_message_ends_without_its_mark", "a_listed_address_stands_still_and_nothing_bounces",
    "a_silent_close_after_some_messages_is_no_failure", "a_greeting_that_takes_longer_than_a_connection_lasts",
    "sites_that_failed_are_forgotten_in_time", "what_is_rerouted_by_itself",
)
OF_CONNECTIONS = (
    "a_family_that_the_kernel_lacks", "no_descriptors", "a_bound_of_descriptors",
    "a_free_place_is_taken_by_one_who_can_use_it", "many_sites_share_a_small_total",
    "nobody_looks_while_all_wait_for_a_lease", "a_lease_of_a_tenant_costs_no_look_at_connections",
    "a_lease_that_others_want_costs_a_look_at_those_who_have_one", "a_hold_has_one_timer",
    "room_for_more_is_used_at_once", "a_limit_over_a_provider_holds_over_its_sites", "recipients_of_a_connection",
    "what_rests_makes_room", "a_connection_counts_until_the_host_has_ended_it",
)
OF_TIMES = (
    "expired_once", "expiry_by_destination", "a_clock_that_is_set", "late_mail_of_a_dead_site",
    "late_mail_in_memory", "times_that_are_over", "a_time_behind_a_site_that_stands_still",
    "a_time_whose_look_goes_wrong", "late_mail_whose_read_has_no_answer", "late_mail_in_flight_when_its_site_fails",
    "a_clock_set_forward_warns_of_nothing", "a_time_that_is_over_while_the_disk_is_full",
)


def assert_holds(program: str, scenario: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"tests.delivery.{program}", scenario], capture_output=True,
                          text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_engine(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    assert_holds("engine_program", scenario)


@pytest.mark.parametrize("scenario", OF_CONNECTIONS)
def test_connections(scenario: str) -> None:
    """Likewise, where connections are limited, or this machine has none to give."""
    assert_holds("connections_program", scenario)


@pytest.mark.parametrize("scenario", OF_TIMES)
def test_times(scenario: str) -> None:
    """Likewise, of mail that is late or whose time is over."""
    assert_holds("ageing_program", scenario)
