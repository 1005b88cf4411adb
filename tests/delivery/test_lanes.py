"""Sources, pools and tenants in a real engine.

Each scenario is a function of the program that is named, whose docstring is the rule; it runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCENARIOS = {
    "lanes_program": (
        "connections_leave_by_weight", "sources_share_a_limit_by_weight", "pools_have_lanes_of_their_own",
        "a_lost_source_is_made_up_for", "a_source_that_vanishes_while_it_runs",
        "a_suspended_path_leaves_its_mail_to_the_others", "many_queues_are_parked_in_pieces",
        "a_hold_over_many_sites_is_one_look", "transactional_mail_waits_for_one_message_of_a_slow_receiver",
        "a_retry_goes_by_the_same_source", "a_pool_that_is_gone", "a_domain_without_a_way_by_our_configuration",
        "a_pool_that_is_gone_may_fall_back", "a_pool_that_changes_moves_waiting_mail", "leases_are_of_the_path",
        "mail_goes_through_a_proxy", "a_path_with_a_rate", "a_reload_takes_no_place_in_line", "a_rate_of_connections",
        "a_rate_over_a_provider", "transactional_mail_overtakes_in_a_rate_that_sites_share",
        "transactional_mail_overtakes_what_is_left_to_a_source",
    ),
    "tenants_program": (
        "tenants_share_by_weight", "a_tenant_with_a_rate_does_not_hold_up_others",
        "a_tenant_with_a_bound_on_messages_in_flight", "lanes_share_a_bound_on_messages_in_flight",
        "lanes_share_the_rate_of_a_tenant", "a_bound_on_messages_in_flight_that_comes_meanwhile",
        "a_tenant_at_its_bound_costs_nothing", "what_a_tenant_may_have", "a_bound_on_a_queue_that_comes_by_a_reload",
        "a_start_waits_for_what_tenants_have",
    ),
    "holds_program": (
        "what_is_held_by_name", "a_suspension_that_a_reload_meets",
        "a_suspension_outlasts_what_else_stops_its_path", "a_suspension_is_told_of_a_site_that_has_failed",
        "limits_that_a_hold_lowers",
        "a_source_that_is_limited", "connections_that_are_open_count_in_a_limit_that_comes",
        "the_lowest_of_several_rates_is_the_reason",
    ),
}


@pytest.mark.parametrize(("program", "scenario"), [
    (program, scenario) for program, scenarios in SCENARIOS.items() for scenario in scenarios])
def test_lanes(program: str, scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    done = subprocess.run([sys.executable, "-m", f"tests.delivery.{program}", scenario], capture_output=True,
                          text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
