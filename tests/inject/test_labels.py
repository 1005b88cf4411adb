"""Tenant, campaign, pool and priority of a message: where they come from, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mta.config.schema import Config, LabelValues, SmtpIn, Source, Tenant
from mta.config.schema import Labels as LabelOptions
from mta.inject import formats
from mta.inject.intake import Accepted, Intake
from mta.inject.intake import Source as Door
from mta.queue.records import Recipient
from mta.queue.scheduler import domain_of, pool_of, priority_of, tenant_of
from mta.smtp.envelope import Envelope
from mta.smtp.reply import Reply


def given(header: bytes, door: Door | None = None, sender: str = "a@news.example.org",
          **options: Any) -> Accepted | Reply:
    """What becomes of a message with these header lines."""
    options.setdefault("pools", {"marketing": {}})
    config = Config(hostname="mta.test", **options)
    intake = Intake(config, lambda: 1 << 10, lambda: 1_700_000_000_000_000)
    envelope = Envelope(sender=sender, recipients=[Recipient("u@d.test")])
    return intake.prepare(envelope, header + b"Subject: x\r\n\r\nbody\r\n", door or Door.smtp("192.0.2.9", 1, "h.test"))


def queue(header: bytes, door: Door | None = None, **options: Any) -> str:
    accepted = given(header, door, **options)
    assert isinstance(accepted, Accepted), accepted
    return accepted.deliveries[0].queue


def test_header_fields_name_the_queue_and_are_removed() -> None:
    """In whatever case and order; everything else stays byte for byte."""
    header = (b"X-tenant: acme\r\nFrom: a@x.test\r\nX-JOB: welcome-1\r\nX-Virtual-MTA: marketing\r\n"
              b"X-Priority-Class:\r\n Bulk\r\nX-Tenants: other\r\n")
    accepted = given(header)
    assert isinstance(accepted, Accepted)
    one = accepted.deliveries[0]
    assert one.queue == "welcome-1:acme@d.test/marketing^bulk"
    message = accepted.message
    assert (message.tenant, message.campaign, message.pool) == ("acme", "welcome-1", "marketing")
    assert message.content is not None
    assert message.content.endswith(b"From: a@x.test\r\nX-Tenants: other\r\nSubject: x\r\n\r\nbody\r\n")
    assert message.content[: message.header_size].endswith(b"Subject: x\r\n")
    assert (domain_of(one.queue), tenant_of(one.queue), pool_of(one.queue), priority_of(one.queue)) == (
        "d.test", "acme", "marketing", 2)


def test_without_labels_the_queue_is_the_domain() -> None:
    """Nothing is stored twice for most mail."""
    assert queue(b"From: a@x.test\r\n") == "d.test"
    assert (domain_of("d.test"), tenant_of("d.test"), pool_of("d.test"), priority_of("d.test")) == ("d.test", "", "", 1)


def test_of_several_fields_the_first_in_the_configuration_counts() -> None:
    """And of several with one name the first in the message; all are removed."""
    header = b"X-Job: job\r\nX-Campaign: first\r\nX-Campaign: second\r\n"
    assert queue(header) == "first:@d.test"
    assert queue(header, labels=LabelOptions(campaign=("X-Job", "X-Campaign"))) == "job:@d.test"
    accepted = given(header)
    assert isinstance(accepted, Accepted)
    assert b"X-" not in (accepted.message.content or b"")


def test_places_by_precedence() -> None:
    """Header, then the door, then the sender's domain, then the tenant, then the default."""
    options = {
        "labels": LabelOptions(
            senders={"news.example.org": LabelValues(tenant="sender", campaign="sender"),
                     "xn--bcher-kva.example": LabelValues(tenant="books"),
                     "[ipv6:2001:db8::1]": LabelValues(tenant="host")},
            default=LabelValues(tenant="default", campaign="default", priority="bulk")),
        "tenants": {"door": Tenant(pool="marketing", priority="transactional"), "sender": Tenant(pool="marketing")},
    }
    door = Door.smtp("192.0.2.9", 1, "h.test", labels=LabelValues(tenant="door"))
    assert queue(b"", sender="a@x.test", **options) == "default:default@d.test^bulk"
    assert queue(b"", sender="a@NEWS.example.org", **options) == "sender:sender@d.test/marketing^bulk"
    assert queue(b"", sender="a@bücher.example", **options) == "default:books@d.test^bulk"
    assert queue(b"", sender="a@[IPv6:2001:db8::1]", **options) == "default:host@d.test^bulk"
    assert queue(b"", door, **options) == "sender:door@d.test/marketing^transactional"
    assert queue(b"X-Tenant: head\r\nX-Priority-Class: normal\r\n", door, **options) == "sender:head@d.test"


def test_a_door_may_not_believe_header_fields() -> None:
    """They are removed all the same, whatever they say."""
    door = Door.smtp("192.0.2.9", 1, "h.test", labels=LabelValues(tenant="door"), label_headers=False)
    accepted = given(b"X-Tenant: other\r\nX-Pool: there is none!\r\n", door)
    assert isinstance(accepted, Accepted)
    assert accepted.deliveries[0].queue == "door@d.test"
    assert b"X-" not in (accepted.message.content or b"")


@pytest.mark.parametrize(("header", "code", "text"), [
    (b"X-Tenant: a b\r\n", "5.6.0", "X-Tenant: expected 1 to 64 letters, digits, dots, hyphens and underscores"),
    (b"X-Tenant: a@b/c^bulk\r\n", "5.6.0", "X-Tenant: expected"),
    (b"X-Job: " + b"x" * 65 + b"\r\n", "5.6.0", "X-Job: expected"),
    (b"X-Tenant: \xc3\xa4\r\n", "5.6.0", "X-Tenant: expected"),
    (b"X-Priority-Class: urgent\r\n", "5.6.0", "X-Priority-Class: expected transactional, normal or bulk"),
    (b"X-Pool: sales\r\n", "5.7.1", "X-Pool: there is no pool sales here"),
])
def test_what_is_no_label_is_refused_or_ignored(header: bytes, code: str, text: str) -> None:
    """Never is it put into the name of a queue."""
    refused = given(header)
    assert isinstance(refused, Reply)
    assert (refused.code, refused.enhanced) == (550, code)
    assert refused.text.startswith(text)
    assert queue(header, labels=LabelOptions(invalid="ignore")) == "d.test"


def test_a_pool_may_be_a_source_alone_or_the_default() -> None:
    """As with PowerMTA, whose X-Virtual-MTA names either; an empty field is as none."""
    assert queue(b"X-Virtual-MTA: out1\r\n", sources={"out1": Source()}) == "d.test/out1"
    assert queue(b"X-Virtual-MTA: default\r\n") == "d.test"
    assert queue(b"X-Virtual-MTA:\r\nX-Pool: marketing\r\n") == "d.test/marketing"


def test_labels_among_the_envelope_lines_of_a_file() -> None:
    """PowerMTA's pickup files have them there, before or behind X-Sender."""
    data = b"X-Virtual-MTA: marketing\nX-Sender: a@x.test\nX-Job: j1\nX-Receiver: u@d.test\nSubject: x\n\nbody\n"
    submission = formats.parse_message(data, SmtpIn())
    assert submission.content == b"X-Virtual-MTA: marketing\r\nX-Job: j1\r\nSubject: x\r\n\r\nbody\r\n"
    assert submission.envelope.sender == "a@x.test"
