"""Rules of the header lines we add."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime

import pytest

from mta.message import trace

TIME_US = 1_136_214_245_999_999  # one microsecond before 15:04:06


def test_a_date_is_utc_with_a_numeric_zone() -> None:
    """RFC 5322 3.3; the fraction of the second is dropped, not rounded."""
    assert trace.date(TIME_US) == "Mon, 02 Jan 2006 15:04:05 +0000"


@pytest.mark.parametrize("second", [0, 951_782_400, 1_709_164_800, 4_102_444_799])
def test_dates_mean_the_same_to_other_software(second: int) -> None:
    """The standard library reads the same instant: epoch, two leap days, end of the century."""
    assert email.utils.parsedate_to_datetime(trace.date(second * 1_000_000)) == datetime.fromtimestamp(second, UTC)


def test_received_names_client_host_protocol_id_and_time() -> None:
    """RFC 5321 4.4: from, by, with, id, for and the date, folded."""
    clause = trace.from_clause("client.example", "192.0.2.9")
    line = trace.received(clause, "mta.example", "with ESMTP", "0abc", "bob@example.org", TIME_US)
    assert line == (
        "Received: from client.example ([192.0.2.9])\r\n\tby mta.example with ESMTP id 0abc\r\n"
        "\tfor <bob@example.org>;\r\n\tMon, 02 Jan 2006 15:04:05 +0000\r\n"
    )


def test_received_without_a_session_and_without_a_single_recipient() -> None:
    """Mail from a file has no `from`; several recipients are not told of each other (RFC 5321 7.2)."""
    assert trace.received("", "mta.example", "(spool directory)", "0abc", "", TIME_US) == (
        "Received: by mta.example (spool directory) id 0abc;\r\n\tMon, 02 Jan 2006 15:04:05 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("helo", "shown"),
    [
        ("client.example", "client.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("under_score", "under_score"),
        ("", "unknown"),
        ("a b", "unknown"),
        ("a\r\nX-Forged: yes", "unknown"),
        ("a\n", "unknown"),
        ("evil)(", "unknown"),
        ("bücher.example", "unknown"),
        ("x" * 300, "unknown"),
    ],
)
def test_a_client_cannot_write_our_header(helo: str, shown: str) -> None:
    """Only what looks like a host name or an address literal is repeated."""
    assert trace.from_clause(helo, "2001:db8::9") == f"from {shown} ([IPv6:2001:db8::9])\r\n\t"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((False,), "SMTP"),
        ((True,), "ESMTP"),
        ((True, True), "ESMTPS"),
        ((True, True, True), "ESMTPSA"),
        ((True, False, False, True), "UTF8SMTP"),
        ((True, True, False, True), "UTF8SMTPS"),
    ],
)
def test_protocol_names(arguments: tuple[bool, ...], name: str) -> None:
    """RFC 3848, and RFC 6531 4.3 for SMTPUTF8."""
    assert trace.protocol(*arguments) == name
