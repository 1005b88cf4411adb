"""Which deliveries an operator means (mta.queue.filter)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.queue.filter import DEEPEST, FIELDS, LONGEST, DeliveryFacts, Filter, FilterError, QueueFacts

QUEUE = QueueFacts("spring:acme@example.org/marketing^bulk", "example.org", "acme", "spring", "marketing", "bulk",
                   "google")
ONE = DeliveryFacts("0C9", "News@acme.example", ["ann@example.org", "bob@example.org"], 7200.0, 3, 5000, "out1",
                    "451 4.7.1 Greylisted")


@pytest.mark.parametrize("text", [
    "domain=example.org", "DOMAIN=Example.ORG", "domain=*.org", "domain!=example.net", "domain~^exam.*org$",
    "queue=spring:acme@*", "tenant=acme", "campaign=s?ring", "pool=marketing", "priority=bulk", "provider=google",
    "sender=news@acme.example", "sender=@acme.example", "recipient=bob@example.org", "recipient=@example.org",
    "message=0c9", "source=out1", "reply~greylist", "reply~\"4\\\\.7\\\\.\"", "age>1h", "age = 2h", "attempts>=3",
    "attempts!=2",
    "size<1MB", "tenant=acme and age>1h", "tenant=other or age>1h", "not tenant=other", "not not tenant=acme",
    "tenant=other or tenant=acme and age>1h", "(tenant=other or tenant=acme) and age>1h", "tenant=\"acme\"",
])
def test_what_it_means(text: str) -> None:
    """Each of these means the delivery; the negation does not."""
    assert Filter.parse(text).matches(QUEUE, ONE)
    assert not Filter.parse(f"not ({text})").matches(QUEUE, ONE)


def test_and_binds_closer_than_or() -> None:
    """a or b and c is a or (b and c)."""
    assert Filter.parse("tenant=acme or tenant=x and tenant=y").matches(QUEUE, ONE)
    assert not Filter.parse("(tenant=acme or tenant=x) and tenant=y").matches(QUEUE, ONE)


@pytest.mark.parametrize(("text", "verdict"), [
    ("domain=example.org", True), ("domain=example.net", False), ("age>1h", None),
    ("tenant=other and age>1h", False), ("tenant=acme and age>1h", None), ("tenant=acme or age>1h", True),
    ("tenant=other or age>1h", None), ("not age>1h", None), ("not (tenant=other and age>1h)", True),
])
def test_a_queue_is_decided_without_reading_it_where_that_can_be(text: str, verdict: bool | None) -> None:
    """What does not depend on the delivery is known of the whole queue."""
    assert Filter.parse(text).of_queue(QUEUE) is verdict


def test_an_empty_value_is_written_in_quotes() -> None:
    """Mail without a tenant, the null sender."""
    queue = QueueFacts("example.org", "example.org")
    assert Filter.parse('tenant=""').of_queue(queue) is True
    one = DeliveryFacts("1", "", ["a@example.org"], 1.0, 0, 1)
    assert Filter.parse('sender=""').matches(queue, one)
    assert not Filter.parse('sender=""').matches(QUEUE, ONE)


def test_a_provider_that_was_not_looked_up_is_not_matched() -> None:
    """Neither it nor its opposite: nobody deletes mail because something is not known."""
    queue = QueueFacts("example.org", "example.org")
    assert Filter.parse("provider=google").of_queue(queue) is None
    assert not Filter.parse("provider=google").matches(queue, ONE)
    assert not Filter.parse("provider!=google").matches(queue, ONE)


def test_brackets_are_no_pattern() -> None:
    """An address literal is a domain like another, also beside a *."""
    queue = QueueFacts("[192.0.2.1]", "[192.0.2.1]")
    assert Filter.parse("domain=[192.0.2.1]").of_queue(queue) is True
    assert Filter.parse("domain=[192.0.2.*").of_queue(queue) is True


@pytest.mark.parametrize(("text", "column", "says"), [
    ("", 1, "expected a field"), ("  ", 1, "expected a field"), ("domain", 7, "expected an operator"),
    ("domain=", 8, "expected a value"), ("domian=x", 1, "did you mean domain?"), ("xyzzy=1", 1, "there are domain"),
    ("age>2", 5, "unit"), ("age~2h", 4, "is a number"), ("domain>x", 7, "is text"), ("attempts>x", 10, "whole number"),
    ("(domain=x", 10, "expected `)`"), ("domain=x y", 10, "expected `and`"), ("domain=x and", 13, "expected a field"),
    ('domain="x', 8, "cannot be read"), ("reply~(", 7, "expected a value"), ('reply~"("', 8, "no regular expression"),
    ("=x", 1, "expected a field"), ("domain=x)", 9, "expected `and`"), ("a" * (LONGEST + 1), LONGEST, "longer"),
    ("(" * (DEEPEST + 2) + "domain=x", DEEPEST + 1, "levels deep"),
])
def test_errors_name_the_column(text: str, column: int, says: str) -> None:
    """What cannot be understood is said with its place and what was expected."""
    with pytest.raises(FilterError, match=r"^column ") as caught:
        Filter.parse(text)
    assert caught.value.column == column
    assert says in str(caught.value)


@given(st.lists(st.sampled_from([*FIELDS, "and", "or", "not", "(", ")", "=", "~", ">", '"', "\\", "*", "2h", "x", " "]),
                max_size=30))
def test_anything_is_read_or_refused(parts: list[str]) -> None:
    """No input raises anything else; whole-queue verdicts hold for every delivery of it."""
    try:
        found = Filter.parse("".join(parts))
    except FilterError:
        return
    verdict = found.of_queue(QUEUE)
    if verdict is not None:
        assert found.matches(QUEUE, ONE) is verdict
