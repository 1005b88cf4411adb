"""Rules of how domains are written: U-labels, A-labels, any case; patterns of them; addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.cli.ordering import target_of
from mta.config.hosts import parse_domain
from mta.control.explanation import subject_of
from mta.queue import idn
from mta.queue.filter import DeliveryFacts, Filter, QueueFacts
from mta.queue.orders import same_mail
from mta.smtp.address import parse_address

QUEUE = QueueFacts("spring:acme@xn--bcher-kva.example/Big", "xn--bcher-kva.example", "acme", "spring", "Big")
WRITTEN = ("bücher.example", "BÜCHER.Example", "bu\u0308cher.example", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE",
           "bücher\u3002example")


def delivery(domain: str) -> DeliveryFacts:
    """One whose envelope has this domain in both addresses."""
    return DeliveryFacts("0C9", f"News@{domain}", [f"ann@{domain}"], 1.0, 0, 1)


@pytest.mark.parametrize("written", WRITTEN)
def test_a_domain_is_one_however_it_is_written(written: str) -> None:
    """In A-labels, lower case; alone, in the name of a queue, of a path, and of a site."""
    assert idn.in_a_labels(written) == "xn--bcher-kva.example"
    assert idn.in_u_labels(written) == "bücher.example"
    assert idn.queue_called(f"Spring:Acme@{written}/Big^bulk") == "Spring:Acme@xn--bcher-kva.example/Big^bulk"
    assert idn.path_called(f"Out1>mx.{written}+2~0a") == "Out1>mx.xn--bcher-kva.example+2~0a"
    assert idn.path_called(f"mx.{written}") == "mx.xn--bcher-kva.example"


def test_what_is_no_name_stays_as_it_is() -> None:
    """Pools and addresses in the names of paths, labels that IDNA does not have."""
    for name in ("Out>?/Pool", "Out>relay:[2001:db8::1]:25", "Out>relay:192.0.2.1:25,[2001:db8::1]:25"):
        assert idn.path_called(name) == name
    for name in ("", "xn--zzzzzz---.example", "-a-.\ufffd", "[192.0.2.1]", "[0-9]*.example", "[ipv6:*", "[1.2]"):
        assert idn.in_a_labels(name) == idn.in_u_labels(name) == name


ADDRESS = "[ipv6:2001:db8::1]"
WRITTEN_ADDRESS = ("[IPv6:2001:db8::1]", "[IPV6:2001:DB8:0:0::1]", "[ipv6:2001:db8::0001]", "[2001:db8::1]")


@pytest.mark.parametrize("written", WRITTEN_ADDRESS)
def test_an_address_is_one_however_it_is_written(written: str) -> None:
    """As the domain of a queue, a target, a site; the configuration and the queue have the same form."""
    assert idn.in_a_labels(written) == idn.in_u_labels(written) == parse_domain(written) == ADDRESS
    assert idn.queue_called(f"Spring:Acme@{written}/Big^bulk") == f"Spring:Acme@{ADDRESS}/Big^bulk"
    assert idn.path_called(f"Out1>{written}+{written}") == f"Out1>{ADDRESS}+{ADDRESS}"
    assert idn.path_called(f"Out1>?{written}") == f"Out1>?{ADDRESS}"
    assert target_of(f"domain={written}") == f"domain:{ADDRESS}"
    assert subject_of(f"domain={written}") == ("domain", ADDRESS)
    assert subject_of(written) == ("name", ADDRESS)


@pytest.mark.parametrize("written", [*WRITTEN_ADDRESS, "[ipv6:2001:*"])
def test_a_filter_finds_mail_to_an_address(written: str) -> None:
    """An envelope has it as RFC 5321 4.1.3 writes it; not another address."""
    queue, one = QueueFacts(f"acme@{ADDRESS}", ADDRESS), delivery(parse_address(f"a@{WRITTEN_ADDRESS[1]}").domain)
    other = QueueFacts("acme@[ipv6:2002:db8::1]", "[ipv6:2002:db8::1]")
    for text in (f"domain={written}", f"queue=acme@{written}", f"sender=@{written}", f"recipient=ANN@{written}"):
        assert Filter.parse(text).matches(queue, one), text
        assert not Filter.parse(text).matches(other, delivery("[IPv6:2002:db8::1]")), text
    if "*" not in written:
        assert same_mail(f"domain={written}", f"domain={ADDRESS}")


@given(st.text(max_size=40))
def test_no_text_is_too_odd(text: str) -> None:
    """An operator, or a client's envelope, may write what it wants; both forms of one domain are then the same."""
    first = idn.forms(text)[0]
    assert first == first.lower()
    idn.queue_called(text), idn.path_called(text), idn.in_u_labels(text)


@pytest.mark.parametrize("kept", ["bücher.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize("written", [*WRITTEN, "*.example", "büch*.example", "*ücher.*", "xn--bch*.example",
                                     "b?cher.example"])
def test_a_filter_finds_mail_by_either_form(kept: str, written: str) -> None:
    """Whatever the client wrote, whatever the operator writes: domain, queue, sender, recipient; not the opposite."""
    one = delivery(kept)
    for text in (f"domain={written}", f"queue=*@{written}/big", f"queue=spring:acme@{written}/Big",
                 f"sender=@{written}", f"sender=news@{written}", f"recipient=@{written}", f"recipient=ANN@{written}"):
        assert Filter.parse(text).matches(QUEUE, one), text
        assert not Filter.parse(text.replace("=", "!=", 1)).matches(QUEUE, one), text
        other = QueueFacts("a@xn--bchr-kva.net", "xn--bchr-kva.net")
        assert not Filter.parse(text).matches(other, delivery("bucher.net")), text


@pytest.mark.parametrize("text", ["domain~^bücher", "domain~^xn--bcher", "recipient~@BÜCHER", "sender~@xn--b"])
def test_a_regular_expression_is_searched_for_in_both_forms(text: str) -> None:
    """Of what is known, whichever form that has."""
    for kept in ("bücher.example", "xn--bcher-kva.example"):
        assert Filter.parse(text).matches(QUEUE, delivery(kept))


def test_only_domains_have_forms() -> None:
    """Elsewhere `xn--` is text as any other."""
    assert not Filter.parse("tenant=bücher").matches(QueueFacts("q", "d", "xn--bcher-kva"), delivery("d"))
    assert not Filter.parse("recipient=jörg@d").matches(QUEUE, DeliveryFacts("1", "", ["xn--jrg-sna@d"], 1.0, 0, 1))


def test_an_order_is_ended_by_either_form() -> None:
    """Two expressions that are the same but for how the domain is written are the same mail; a regular expression is
    text."""
    assert same_mail("domain=BÜCHER.example", 'domain = "xn--bcher-kva.example"')
    assert same_mail("sender=@bücher.example and age>2h", "sender=@XN--bcher-kva.example and age>2h")
    assert not same_mail("domain=bücher.example", "domain=bucher.example")
    assert not same_mail("tenant=bücher", "tenant=xn--bcher-kva")
    assert not same_mail("domain~bücher", "domain~xn--bcher-kva")
