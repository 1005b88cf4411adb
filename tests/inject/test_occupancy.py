"""How many sessions a client may have, and how often it may connect; on a given clock."""

from __future__ import annotations

import math

from mta.inject import occupancy
from mta.inject.occupancy import TOO_MANY, TOO_MANY_OF_YOURS, Occupancy


def test_ipv6_is_counted_by_what_one_customer_has() -> None:
    """The addresses of a /64 are one client, for sessions and for connections."""
    one = Occupancy()
    assert one.enter("2001:db8:1:2::1", 10, 2) is None
    assert one.enter("2001:db8:1:2::2", 10, 2) is None
    assert one.enter("2001:db8:1:2::3", 10, 2) == TOO_MANY_OF_YOURS
    assert one.enter("2001:db8:1:3::3", 10, 2) is None
    assert one.enter("192.0.2.1", 3, 2) == TOO_MANY
    assert one.coming.clients == 3  # the store is told, too
    one.leave("2001:db8:1:2::1")
    assert one.coming.clients == 2
    assert one.enter("2001:db8:1:2::9", 10, 2) is None
    assert not one.comes_too_often("2001:db8:1:2::1", 1, 0.0)
    assert one.comes_too_often("2001:db8:1:2::2", 1, 0.0)


def test_connections_are_counted_for_a_minute() -> None:
    """Those that are refused count, too: who never stops is never let in but once a minute."""
    one = Occupancy()
    assert [one.comes_too_often("192.0.2.1", 3, 5.0) for _ in range(5)] == [False, False, False, True, True]
    assert not one.comes_too_often("192.0.2.2", 3, 5.0)
    assert one.comes_too_often("192.0.2.1", 3, 64.9)
    assert not one.comes_too_often("192.0.2.1", 3, 65.0)


def test_memory_is_bounded() -> None:
    """With very many clients the count begins anew."""
    one = Occupancy()
    for n in range(occupancy._CLIENTS_KEPT + 1):
        one.comes_too_often(f"192.0.2.{n}", 3, 5.0)
    assert len(one._came) == 1


def test_a_count_of_clients_that_are_gone_is_not_kept() -> None:
    """Nothing is left of who was refused, nor of who has left."""
    one = Occupancy()
    one.enter("192.0.2.1", 10, 1)
    one.enter("192.0.2.1", 10, 1)
    one.enter("192.0.2.2", 0, 1)
    one.leave("192.0.2.1")
    assert not one._by_client


def test_who_a_load_balancer_speaks_for_is_counted_in_its_place() -> None:
    """The session stays one in all, also when there are more of them than a reload allows since; and who is refused
    there is counted out as it was counted in."""
    one = Occupancy()
    assert [one.enter("192.0.2.9", 10, math.inf) for _ in range(3)] == [None, None, None]
    one.most = 1
    assert one.move("192.0.2.9", "192.0.2.1", 1) is None
    assert one.move("192.0.2.1", "192.0.2.1", 1) is None
    assert one.move("192.0.2.9", "192.0.2.1", 1) == TOO_MANY_OF_YOURS
    assert (one.total, one._by_client) == (3, {"192.0.2.9": 2, "192.0.2.1": 1})
    for client in ("192.0.2.9", "192.0.2.9", "192.0.2.1"):
        one.leave(client)
    assert (one.total, one._by_client) == (0, {})
