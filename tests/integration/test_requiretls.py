"""Mail that requires TLS (RFC 8689) through a real worker: to hosts that give it, and to hosts that do not."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.sandbox.client import Sandbox
from tests.inject.access_helpers import Pki, make_pki
from tests.integration.support import Mta, message

GOOD = {"starttls": "offered", "certificate": "trusted", "extensions": ["REQUIRETLS"], "dns": {"authentic": True}}
DOMAINS: dict[str, Any] = {
    "good.test": GOOD,
    "second.test": GOOD | {"dns": {"authentic": True, "mx": ["10 mx.lacking.test", "20 mx2.second.test"]}},
    "mx.lacking.test": GOOD | {"extensions": []},
    "bare.test": GOOD | {"extensions": []},
    "clear.test": GOOD | {"starttls": "off"},
    "broken.test": GOOD | {"starttls": "broken"},
    "refused.test": GOOD | {"starttls": "refused"},
    "selfsigned.test": GOOD | {"certificate": "self-signed"},
    "othername.test": GOOD | {"certificate": "other-name"},
    "unverified.test": GOOD | {"dns": {"authentic": False}},
    "down.test": GOOD | {"listening": False},
    "sender.test": GOOD,
    "oldsender.test": {},
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def sandbox(directory: Path) -> Iterator[Sandbox]:
    """Hosts of all kinds, with an authority of their own."""
    with Sandbox({"domains": DOMAINS, "authority": str(directory / "authority.pem"), "log_content": "20kB"}) as running:
        yield running


@pytest.fixture
def mta(make_mta: Callable[..., Mta], sandbox: Sandbox, directory: Path, pki: Pki) -> Iterator[Mta]:
    """An MTA that trusts that authority and its resolver, and offers TLS."""
    options = {"ca_file": str(directory / "authority.pem")}
    with make_mta(
        workers=1,
        listeners=[{"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"], "tls": "offered"}],
        certificates=[{"certificate": pki.make("mta.test", "127.0.0.1")}],
        dns={"servers": [sandbox.dns], "validates": True},
        delivery={"allow_loopback": True, **options},
    ) as running:
        yield running


def send(mta: Mta, pki: Pki, number: int, to: str, *options: str, sender: str = "a@sender.test") -> None:
    """One message under TLS, with parameters of MAIL."""
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        client.starttls(context=pki.context())
        client.sendmail(sender, [to], message(number, to), mail_options=list(options))


def outcomes(mta: Mta) -> dict[str, dict[str, Any]]:
    """The last event about each recipient."""
    found = {}
    for event in mta.events():
        for recipient in event.get("recipients", []):
            if event["event"] in ("delivered", "bounced", "deferred"):
                found[recipient] = event
    return found


def test_only_hosts_that_protect_get_it(mta: Mta, sandbox: Sandbox, pki: Pki) -> None:
    """TLS, a certificate of the host's name, REQUIRETLS in its EHLO, and authentic MX records: a host that lacks one of
    them never sees the message, the next one is tried, and without any it comes back with 5.7.30 or 5.7.10."""
    for number, domain in enumerate(DOMAINS):
        if domain not in ("sender.test", "oldsender.test", "mx.lacking.test"):
            send(mta, pki, number, f"u@{domain}", "REQUIRETLS")
    mta.wait_until(lambda: mta.queued() == 2, "an end for all but two")
    mta.stop()
    found = outcomes(mta)
    found.pop("u@refused.test", None)  # 454 at STARTTLS is for now: it waits, as the one whose host is down does
    assert {to: (event["event"], event["enhanced"]) for to, event in found.items()} == {
        "u@good.test": ("delivered", "2.0.0"),
        "u@second.test": ("delivered", "2.0.0"),
        "u@bare.test": ("bounced", "5.7.30"),
        "u@clear.test": ("bounced", "5.7.10"),
        "u@broken.test": ("bounced", "5.7.10"),
        "u@selfsigned.test": ("bounced", "5.7.10"),
        "u@othername.test": ("bounced", "5.7.10"),
        "u@unverified.test": ("bounced", "5.7.10"),
        "a@sender.test": ("delivered", "2.0.0"),
    }
    taken = sandbox.log()
    assert {(one["host"], to) for one in taken for to in one["recipients"]} == {
        ("mx1.good.test", "u@good.test"), ("mx2.second.test", "u@second.test"), ("mx1.sender.test", "a@sender.test")}
    assert all("REQUIRETLS" in one["parameters"] and one["tls"] for one in taken)


def test_a_bounce_is_protected_where_it_can_be(mta: Mta, sandbox: Sandbox, pki: Pki) -> None:
    """A notification about such mail requires TLS, too, and is of header lines; where the host of the sender gives none
    it goes all the same (RFC 8689 5)."""
    send(mta, pki, 1, "u@bare.test", "REQUIRETLS", "RET=FULL")
    send(mta, pki, 2, "u@bare.test", "REQUIRETLS", sender="a@oldsender.test")
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    hosts = {one["host"]: one for one in sandbox.log()}
    assert hosts["mx1.sender.test"]["parameters"].keys() >= {"REQUIRETLS"}
    assert "REQUIRETLS" not in hosts["mx1.oldsender.test"]["parameters"]
    assert "over the lazy dog" not in hosts["mx1.sender.test"]["content"]
    assert "Subject: message 1" in hosts["mx1.sender.test"]["content"]


def test_other_mail_goes_as_ever_beside_it(mta: Mta, sandbox: Sandbox, pki: Pki) -> None:
    """A host that cannot protect gets the mail that does not ask for it, before and after; `TLS-Required: No` is such
    mail, and beside REQUIRETLS it is overlooked (RFC 8689 4.1)."""
    for number in range(6):
        send(mta, pki, number, f"u{number}@selfsigned.test", *(["REQUIRETLS"] if number % 2 else []))
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        client.starttls(context=pki.context())
        optional = b"TLS-Required: No\r\n" + message(7, "u7@good.test")
        client.sendmail("a@sender.test", ["u7@selfsigned.test"], optional)
        client.sendmail("a@sender.test", ["u8@selfsigned.test"], optional, mail_options=["REQUIRETLS"])
    mta.wait_until(lambda: mta.queued() == 0, "an empty queue")
    mta.stop()
    ends = {to: event["event"] for to, event in outcomes(mta).items() if to != "a@sender.test"}
    assert ends == {f"u{number}@selfsigned.test": "bounced" if number in (1, 3, 5, 8) else "delivered"
                    for number in (0, 1, 2, 3, 4, 5, 7, 8)}


def test_it_is_taken_under_tls_only(mta: Mta, pki: Pki) -> None:
    """The keyword stands in the answer to EHLO under TLS, and the parameter is none without (RFC 8689 4.1)."""
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        client.ehlo()
        assert not client.has_extn("requiretls")
        assert client.docmd("MAIL FROM:<a@sender.test> REQUIRETLS")[0] == 555
        client.starttls(context=pki.context())
        client.ehlo()
        assert client.has_extn("requiretls")
        assert client.docmd("MAIL FROM:<a@sender.test> REQUIRETLS")[0] == 250
