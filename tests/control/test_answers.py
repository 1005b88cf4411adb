"""What a worker makes of a question on its control socket."""

from __future__ import annotations

import pytest

from mta.control.answers import as_pattern


@pytest.mark.parametrize(("asked", "pattern"), [
    ("", ""), ("gmail", "*gmail*"), ("*.example.org", "*.example.org"), ("d?.test", "d?.test"),
    ("[ab].test", "[ab].test"), ("[192.0.2.1]", "*[[]192.0.2.1]*"), ("[IPv6:2001:DB8:0::1]", "*[[]ipv6:2001:db8::1]*"),
])
def test_a_part_of_a_name_finds_the_queue(asked: str, pattern: str) -> None:
    """`mta queue list gmail` lists gmail.com; a shell pattern is for the whole name."""
    assert as_pattern(asked) == pattern
