"""How a worker divides its descriptors: `mta.control.descriptors`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta.config.schema import Config, Delivery, SmtpIn
from mta.control.descriptors import RESERVE, SOCKETS_PER_LOOKUP, divide

CONFIG = Config(hostname="mta.test")


def with_limits(sessions: int, connections: int) -> Config:
    return replace(CONFIG, smtp=SmtpIn(sessions=sessions), delivery=Delivery(connections=connections))


def test_with_enough_the_configuration_decides() -> None:
    """As many as it says, and no fewer."""
    shares = divide(1_000_000, 40, CONFIG)
    assert (shares.sessions, shares.connections) == (CONFIG.smtp.sessions, CONFIG.delivery.connections)


@pytest.mark.parametrize("limit", [64, 96, 128, 256, 1024, 4096, 10_000])
def test_what_is_given_out_leaves_the_reserve(limit: int) -> None:
    """Sessions, connections and lookups together never touch what the store needs; each kind gets some."""
    shares = divide(limit, 40, CONFIG)
    assert min(shares) >= 1
    taken = 40 + shares.sessions + shares.connections + shares.lookups * SOCKETS_PER_LOOKUP
    assert taken <= max(limit - min(RESERVE, limit // 4), 44)


def test_neither_side_starves_the_other() -> None:
    """Half each; what one side does not want the other gets."""
    shares = divide(1024, 40, CONFIG)
    assert shares.sessions == pytest.approx(shares.connections, abs=1)
    few = divide(1024, 40, with_limits(10, 5000))
    assert few.sessions == 10
    assert few.connections > 700
    few = divide(1024, 40, with_limits(4000, 10))
    assert few.connections == 10
    assert few.sessions > 700
