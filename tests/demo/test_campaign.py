"""The mail of the demo and its receivers."""

from __future__ import annotations

import email
import random
import zlib

from mta.demo.campaign import Campaign
from mta.demo.internet import KINDS, Internet, shares


def internet(seed: int = 1) -> Internet:
    return Internet(random.Random(seed))


def test_a_seed_makes_the_same_campaign_each_time_and_another_one_another() -> None:
    """So that a run can be repeated."""
    first = list(Campaign(50, 7, internet()))

    assert first == list(Campaign(50, 7, internet()))
    assert first != list(Campaign(50, 8, internet()))


def test_every_kind_of_receivers_gets_mail() -> None:
    """Also in a small run."""
    known = internet()
    domains = [to.rpartition("@")[2] for mail in Campaign(60, 1, known) for to in mail.recipients]

    assert {known.kind_of[domain].key for domain in domains} == {kind.key for kind in KINDS}
    for count in (1, 10, 16, 60, 5000):
        assert len(shares(count)) == count


def test_no_recipient_is_used_twice() -> None:
    """Duplicates are found by message and recipient, greylisting by sender and recipient."""
    recipients = [to for mail in Campaign(2000, 1, internet()) for to in mail.recipients]

    assert len(set(recipients)) == len(recipients)


def test_messages_are_whole() -> None:
    """CRLF throughout, short lines, a checksum of the body that is right, the Message-ID that is accounted by."""
    for mail in Campaign(200, 1, internet()):
        head, _, body = mail.content.partition(b"\r\n\r\n")
        parsed = email.message_from_bytes(mail.content)
        assert mail.content.endswith(b"\r\n")
        assert b"\n" not in mail.content.replace(b"\r\n", b"")
        assert max(map(len, mail.content.split(b"\r\n"))) <= 998
        assert parsed["X-Test-Crc32"] == f"{zlib.crc32(body):08x}"
        assert parsed["Message-ID"] == mail.message_id
        assert head.isascii()


def test_some_bodies_begin_a_line_with_a_dot() -> None:
    """Dot-stuffing is part of what is accounted for."""
    assert any(b"\r\n." in mail.content for mail in Campaign(50, 1, internet()))


def test_domains_are_not_shared_between_kinds_and_titles_fit_their_column() -> None:
    """Each domain behaves in one way."""
    known = internet()

    assert sum(map(len, known.domains.values())) == len(known.kind_of)
    assert all(len(known.domains[kind.key]) == kind.domains for kind in KINDS)
    assert all(len(kind.title) <= 30 for kind in KINDS)
    assert abs(sum(kind.share for kind in KINDS) - 1) < 0.02
