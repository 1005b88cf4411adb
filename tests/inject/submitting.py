"""A listener for submission in a process of its own, and clients that log in there."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.inject.access_helpers import Pki, configuration
from tests.inject.test_listener import Process, listening

TLS = {"tls": "offered", "auth": "offered"}
RIGHT = "PLAIN AGFjbWUAc2VjcmV0"
WRONG = "PLAIN AGFjbWUAd3Jvbmc="


@contextlib.contextmanager
def submission(pki: Pki, users: str, listener: dict[str, Any] | None = None, /, *, clock: bool = False,
               **options: Any) -> Iterator[Process]:
    """A listener with a certificate for mx.example.net; what it says on stderr is about refusals."""
    settings = {"clock": True} if clock else {}
    access = {"users_file": users, **options.pop("access", {})}
    options.setdefault("certificates", [{"certificate": pki.make("mx.example.net")}])
    configured = configuration(TLS if listener is None else listener, access=access, **options)
    with listening(config=configured, **settings) as process:
        yield process


def client(process: Process, pki: Pki, certificate: str = "") -> smtplib.SMTP:
    """Connected, under TLS after STARTTLS, and greeted."""
    smtp = smtplib.SMTP("127.0.0.1", process.port, "client.example", 20)
    smtp._host = "mx.example.net"  # the name that the certificate has to have
    smtp.starttls(context=pki.context(certificate))
    smtp.ehlo()
    return smtp


def refusal(call: Any, *args: Any) -> tuple[int, bytes]:
    """The reply by which something is refused."""
    with pytest.raises((smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused)) as error:
        call(*args)
    if isinstance(error.value, smtplib.SMTPRecipientsRefused):
        return next(iter(error.value.recipients.values()))
    return error.value.smtp_code, error.value.smtp_error


def unnamed(pki: Pki) -> ssl.SSLContext:
    """A context for a server that is known by its address."""
    context = pki.context()
    context.check_hostname = False
    return context
