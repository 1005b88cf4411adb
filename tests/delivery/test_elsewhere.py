"""What a rule on replies sends another way: other sources, other hosts, and how often.

Each scenario is a function of `elsewhere_program`, whose docstring is the rule; it runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCENARIOS = (
    "another_source_at_once", "no_source_twice_and_then_the_schedule", "with_one_source_it_is_defer",
    "a_source_that_stands_still_is_none", "another_host", "another_source_and_another_host",
    "a_host_that_is_all_there_is", "not_for_ever",
)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_elsewhere(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    done = subprocess.run([sys.executable, "-m", "tests.delivery.elsewhere_program", scenario], capture_output=True,
                          text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
