"""Limits on failed logins, on a given clock."""

from __future__ import annotations

from mta.access import attempts
from mta.access.attempts import Attempts, Numbers, network_of


def test_delays_double() -> None:
    """Each failure from an address waits twice as long as the one before, up to 15 seconds, whoever it says it is."""
    limits = Attempts(100, 100, 3600, 1.0)
    assert [limits.failed(f"user{n}", "192.0.2.1", 0.0) for n in range(7)] == [1, 2, 4, 8, 15, 15, 15]
    assert limits.failed("user", "192.0.2.2", 0.0) == 1


def test_an_address_is_closed_for_a_time() -> None:
    """With so many failures nothing more is looked at, until the first of them is that old."""
    limits = Attempts(3, 100, 3600, 0)
    for n in range(3):
        assert not limits.address_is_closed("192.0.2.1", n)
        limits.failed("a", "192.0.2.1", n)
    assert limits.address_is_closed("192.0.2.1", 3599)
    assert not limits.address_is_closed("192.0.2.2", 3599)
    assert not limits.address_is_closed("192.0.2.1", 3600)


def test_a_login_does_not_clear_the_address() -> None:
    """Who has one password cannot go on guessing others by logging in now and then."""
    limits = Attempts(3, 100, 3600, 0)
    for _ in range(3):
        limits.failed("victim", "192.0.2.1", 0)
        limits.succeeded("own", "192.0.2.1", 0)
    assert limits.address_is_closed("192.0.2.1", 1)


def test_nobody_shuts_a_user_out() -> None:
    """A user who is guessed from many addresses is closed to them, not to where it has logged in from before."""
    limits = Attempts(100, 5, 3600, 0)
    limits.succeeded("acme", "2001:db8:1:2::1", 0)
    for n in range(5):
        limits.failed("acme", f"192.0.2.{n}", 0)
    assert limits.user_is_closed("acme", "198.51.100.1", 1)
    assert not limits.user_is_closed("acme", "2001:db8:1:2::99", 1)
    assert not limits.user_is_closed("other", "198.51.100.1", 1)


def test_one_customer_has_many_ipv6_addresses() -> None:
    """IPv6 is counted by /64; what is no address counts as it is."""
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::") == "2001:db8:1:2::/64"
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("") == ""


def test_memory_is_bounded() -> None:
    """What has been quiet longest is forgotten first."""
    numbers = Numbers()
    for n in range(attempts.KEPT + 1):
        numbers.add("a", f"a{n}", 0, 10)
    assert numbers.get("a", "a0", 1) == (0, 0.0)
    assert numbers.get("a", "a1", 1) == (1, 10)
    assert len(numbers._counts) == attempts.KEPT


def test_where_a_user_is_known_is_written_seldom() -> None:
    """Thousands of logins a second write nothing; one that was long ago is renewed."""
    numbers = Numbers()
    limits = Attempts(3, 3, 3600, 0, numbers)
    limits.succeeded("acme", "192.0.2.1", 0)
    for n in range(5):
        limits.succeeded("acme", "192.0.2.1", n)
    assert numbers.get("k", "192.0.2.1\0acme", 5) == (1, attempts.KNOWN_S)
    limits.succeeded("acme", "192.0.2.1", attempts.KNOWN_S / 2)
    assert numbers.get("k", "192.0.2.1\0acme", attempts.KNOWN_S) == (2, attempts.KNOWN_S * 1.5)
