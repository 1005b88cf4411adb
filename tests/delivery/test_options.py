"""Options of shaping have effect, as the receiver sees it.

Each scenario is a function of `options_program`, whose docstring is the rule; it runs in a process of its own.
Tested elsewhere: connections and rates (test_limits, test_shared_rates, test_lanes), recipients of a connection
(test_engine), MX order and addresses (test_targets), hosts that are skipped or prohibited, ports
(test_routing_addresses, test_routing), retry and expiry by destination (test_settle, test_engine), adaptation
(test_adapting).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.delivery.test_exits import _has_ipv6

PHASES = ("connect", "greeting", "ehlo", "starttls", "mail", "rcpt", "data", "block", "dot")
SCENARIOS = ("messages_per_connection", "connection_age", "idle", "recipients_per_message", "pipelining", "chunking",
             "tls", "families", *(f"timeouts {phase}" for phase in PHASES))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_options(scenario: str) -> None:
    """The rule is in the docstring of the scenario."""
    if scenario == "families" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    done = subprocess.run([sys.executable, "-m", "tests.delivery.options_program", *scenario.split()],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
