"""Rules of the list of senders that a client may use."""

from __future__ import annotations

import pytest

from mta.config.forms import parse_sender_pattern
from mta.inject.permissions import SenderList
from mta.smtp.address import parse_address


@pytest.mark.parametrize("pattern", ["[IPv6:2001:db8::1]", "a@[ipv6:2001:DB8:0::1]", "[2001:db8::1]"])
def test_an_address_literal_is_one_however_it_is_written(pattern: str) -> None:
    """In the list and in the envelope; another address is not meant."""
    senders = SenderList([parse_sender_pattern(pattern)])
    assert senders.allows(parse_address("a@[IPV6:2001:db8:0:0::1]"))
    assert not senders.allows(parse_address("a@[IPv6:2001:db8::2]"))
