"""How connections leave and what dead hosts cost, as the far end sees it.

Each scenario is a function of `exits_program`, whose docstring is the rule; it runs in a process of its own.
"""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

SCENARIOS = (
    "each_source_has_its_name_and_certificate", "the_proxy_protocol_tells_where_to_and_from",
    "a_proxy_that_fails_leaves_its_mail_to_others", "a_source_of_one_family", "a_dead_address_is_given_up_in_seconds",
    "a_host_that_went_down_is_not_stormed",
)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_exits(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    if scenario == "a_source_of_one_family" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    done = subprocess.run([sys.executable, "-m", "tests.delivery.exits_program", scenario], capture_output=True,
                          text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
