"""Which addresses are tried, in which order, and what connecting taught."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

import pytest

from mta.config.shaping import Shaping
from mta.delivery.hostset import HostSet
from mta.delivery.routing import FOREVER, Addresses, Host, Route
from mta.delivery.targets import FORGET_CAP_S, FORGET_FIRST_S, Reachability, Target, in_order, targets

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
A, B, C = Host("a.net", 25, 10), Host("b.net", 25, 10), Host("c.net", 25, 20)
ROUTE = Route("site", (A, B, C), FOREVER, False)
ALONE = Route("a.net", (A,), FOREVER, False)
FIRST, SECOND = (V4, "192.0.2.1"), (V6, "2001:db8::1")
USUAL = Shaping()


def found(table: dict[str, list[tuple[int, str]]], asked: list[str] | None = None,
          ) -> Callable[[Host, Shaping], Addresses]:
    def addresses(host: Host, shaping: Shaping) -> Addresses:
        if asked is not None:
            asked.append(host.name)
        return Addresses(table.get(host.name, []), "", "", FOREVER)
    return addresses


def tried(route: Route, table: dict[str, list[tuple[int, str]]], shaping: Shaping = USUAL,
          known: Reachability | None = None, now_s: float = 0.0,
          serves: Callable[[int], bool] = lambda family: True) -> list[str]:
    return [target.address for target in targets(
        "path", route, shaping, found(table), serves, known or Reachability(), now_s)]


THREE = {"a.net": [(V4, "1.1.1.1")], "b.net": [(V4, "2.2.2.2")], "c.net": [(V4, "3.3.3.3")]}


def orders(shaping: Shaping, last: str = "", route: Route = ROUTE) -> set[str]:
    return {"".join(host.name[0] for host in in_order(route, shaping, last)) for _ in range(200)}


def test_hosts_by_preference() -> None:
    """Lower first, equal ones in random order for each connection (RFC 5321 5.1)."""
    assert orders(USUAL) == {"abc", "bac"}


def test_hosts_at_random() -> None:
    """The preference does not count; a relay's order is the operator's own and stays."""
    assert orders(Shaping(mx="random")) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert orders(Shaping(mx="random"), route=Route("relay:", (A, C), FOREVER, True)) == {"ac"}


def test_the_host_that_served_last() -> None:
    """`sticky`: it goes before its equals, not before better ones; nothing is known at first."""
    assert orders(Shaping(mx="sticky"), "b.net") == {"bac"}
    assert orders(Shaping(mx="sticky"), "c.net") == {"abc", "bac"}
    assert orders(Shaping(mx="sticky")) == {"abc", "bac"}
    assert orders(USUAL, "b.net") == {"abc", "bac"}


def test_stickiness_is_of_a_path() -> None:
    """What served one path says nothing about another one."""
    known = Reachability()
    known.served("path", Target(B, V4, "2.2.2.2"))
    assert known.last_host("path") == "b.net"
    assert known.last_host("other") == ""
    assert {tuple(tried(ROUTE, THREE, Shaping(mx="sticky"), known)) for _ in range(50)} == {
        ("2.2.2.2", "1.1.1.1", "3.3.3.3")}


def test_no_more_addresses_than_configured() -> None:
    """And hosts that are not needed are not looked up."""
    asked: list[str] = []
    many = {"a.net": [(V4, f"192.0.2.{index}") for index in range(9)]}
    route = Route("site", (A, C), FOREVER, False)
    three = Shaping(addresses=3)
    got = list(targets("path", route, three, found(many, asked), lambda family: True, Reachability(), 0.0))
    assert len(got) == 3
    assert asked == ["a.net"]


@pytest.mark.parametrize(("families", "order"), [
    ("both", [FIRST, SECOND]), ("ipv4-first", [FIRST, SECOND]), ("ipv6-first", [SECOND, FIRST]),
])
def test_families(families: str, order: list[tuple[int, str]]) -> None:
    """One may be preferred; else they come as they were drawn."""
    shaping = Shaping(families=families)
    assert tried(ALONE, {"a.net": [FIRST, SECOND]}, shaping) == [address for _, address in order]


def test_a_family_that_the_source_lacks_is_passed_over() -> None:
    """And does not count as tried."""
    table = {"a.net": [FIRST, SECOND, (V6, "2001:db8::2")]}
    assert tried(ALONE, table, Shaping(addresses=2), serves=V6.__eq__) == ["2001:db8::1", "2001:db8::2"]


def test_the_family_that_failed_goes_last() -> None:
    """For that host, for a while; when both failed, or one is preferred by the operator, the order is as ever."""
    known = Reachability()
    known.failed(Target(A, V4, "192.0.2.9"), 0.0)
    table = {"a.net": [FIRST, SECOND], "c.net": [FIRST, SECOND]}
    assert tried(ALONE, table, known=known) == ["2001:db8::1", "192.0.2.1"]
    assert tried(Route("c.net", (C,), FOREVER, False), table, known=known) == ["192.0.2.1", "2001:db8::1"]
    assert tried(ALONE, table, Shaping(families="ipv4-first"), known) == ["192.0.2.1", "2001:db8::1"]
    assert tried(ALONE, table, known=known, now_s=FORGET_FIRST_S + 1) == ["192.0.2.1", "2001:db8::1"]
    known.failed(Target(A, V6, "2001:db8::9"), 0.0)
    assert tried(ALONE, table, known=known) == ["192.0.2.1", "2001:db8::1"]


def test_an_address_that_failed_goes_behind_all_others() -> None:
    """Also behind hosts of lower preference: a dead host costs one connect in a while, not one of each connection."""
    known = Reachability()
    known.failed(Target(A, V4, "1.1.1.1"), 0.0)
    assert {tuple(tried(ROUTE, THREE, known=known)) for _ in range(20)} == {("2.2.2.2", "3.3.3.3", "1.1.1.1")}
    assert tried(ALONE, THREE, known=known) == ["1.1.1.1"]  # there is nothing better
    known.served("path", Target(A, V4, "1.1.1.1"))
    assert {tuple(tried(ROUTE, THREE, known=known))[2] for _ in range(20)} == {"3.3.3.3"}


def test_failures_in_a_row_count_longer_and_fade() -> None:
    """A minute, two, four, up to half an hour; after a time without one they begin anew."""
    known = Reachability()
    target, now_s, waits = Target(A, V4, "1.1.1.1"), 0.0, []
    for _ in range(8):
        known.failed(target, now_s)
        wait_s = next(wait for wait in range(1, 10_000) if not known.is_failing("1.1.1.1", now_s + wait))
        waits.append(wait_s)
        now_s += wait_s + 1
    assert waits == [60, 120, 240, 480, 960, 1800, 1800, 1800]
    now_s += 2 * FORGET_CAP_S
    known.failed(target, now_s)
    assert known.is_failing("1.1.1.1", now_s + 59)
    assert not known.is_failing("1.1.1.1", now_s + 61)


def test_memory_is_bounded() -> None:
    """Whatever number of hosts there is; the oldest are forgotten."""
    known = Reachability(at_most=10)
    for index in range(100):
        known.failed(Target(Host(f"h{index}.net", 25, 0), V4, f"10.0.0.{index}"), 0.0)
        known.served(f"path{index}", Target(A, V4, "192.0.2.1"))
    assert sum(known.is_failing(f"10.0.0.{index}", 1.0) for index in range(100)) == 5
    assert known.is_failing("10.0.0.99", 1.0)
    assert sum(known.last_host(f"path{index}") != "" for index in range(100)) == 10


@pytest.mark.parametrize(("items", "names", "addresses"), [
    (["mx3.a.example"], ["mx3.a.example"], []),
    (["*.a.example"], ["mx3.a.example", "b.c.a.example"], []),
    (["192.0.2.0/24", "2001:db8::1"], [], ["192.0.2.9", "2001:db8::1"]),
    ([], [], []),
])
def test_sets_of_hosts(items: Iterable[str], names: list[str], addresses: list[str]) -> None:
    """By name, pattern, network or address; each is asked for as what it is."""
    hosts = HostSet(tuple(items))
    assert [name for name in ("a.example", "mx3.a.example", "b.c.a.example", "x.example") if hosts.has_name(name)
            ] == names
    assert [one for one in ("192.0.2.9", "192.0.3.9", "2001:db8::1", "2001:db8::2") if hosts.has_address(one)
            ] == addresses
