"""Options on who may send: certificates, the file of users and how logins are checked, allowances.

Part of the schema (`mta.config.schema`), which says what an option is.
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mta.config.forms import FilePath, HttpUrl
from mta.config.option import option
from mta.config.units import Duration, Rate, Size

Mechanism: TypeAlias = Literal["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]
MECHANISMS: tuple[Mechanism, ...] = ("SCRAM-SHA-256", "PLAIN", "LOGIN")
"""Not SCRAM-SHA-256-PLUS: clients on GNU SASL (mutt, msmtp) choose it first, with the bindings `tls-exporter` and
`tls-unique`, which Python's TLS does not give us; they then fail and try nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that listeners show. The files are read again when they change."""

    certificate: FilePath = option(
        doc="PEM file with the certificate and its chain.", example="/etc/mta/mta1.example.net.pem")
    key: FilePath | None = option(None, "PEM file with its key, when that is not in `certificate`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may log in, and how that is checked."""

    users_file: FilePath | None = option(
        None, "File of the users and their passwords, as hashes; `mta user` writes it. It is read again when it "
        "changes.", example="/etc/mta/users")
    check_url: HttpUrl | None = option(
        None, "Where to ask about users who are not in `users_file`: a POST with `user`, `password`, `client` and "
        "`listener` as JSON; 200 is yes, 401 and 403 are no, all else is `454 4.7.0`. `https`, but for loopback. Such "
        "users have no SCRAM.", example="https://auth.example.net/smtp")
    check_timeout: Duration = option(Duration(10), "Wait for that answer.")
    mechanisms: tuple[Mechanism, ...] = option(
        MECHANISMS, "What is offered; each where it can be. SCRAM-SHA-256-PLUS is for clients that bind to the "
        "certificate (`tls-server-end-point`); others, mutt among them, choose it and fail.")
    threads: int = option(2, "Passwords that are checked at once, in one worker. Each takes 20 MB and 20 ms of "
                          "a processor with the hashes of `mta user`.", min=1, max=32)
    remembered: Duration = option(
        Duration(300), "A password that was right is believed so long without computing its hash again; 0: never. It "
        "is forgotten when the entry of its user changes.", min=0)
    failures: int = option(
        20, "Failed logins from one address (IPv6: from one /64), in `failure_time` and at all workers, before it is "
        "answered `421 4.7.0` without being heard.", min=1)
    user_failures: int = option(
        50, "Failed logins of one user, likewise, before those from addresses from which it has not logged in before "
        "are answered `454 4.7.0`.", min=1)
    failure_time: Duration = option(Duration(3600), "How long failed logins count.", min=1)
    failure_delay: Duration = option(
        Duration(1), "Wait before a failed login is answered; it doubles with each one from the same address, up to "
        "15 seconds.", min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How much may be sent, over all workers. Periods are those of the clock: an hour or a day of UTC."""

    messages: tuple[Rate, ...] = option(
        (), "Messages in a period; `452 4.7.1` for more.", example="[1000/h, 10000/d]", whole_seconds=True)
    recipients: tuple[Rate, ...] = option(
        (), "Recipients in a period, likewise.", example="[50000/d]", whole_seconds=True)
    message_size: Size | None = option(
        None, "Largest message, where that is less than `smtp.message_size`; `552 5.3.4` above it. A listener tells "
        "its own as SIZE.")
    sessions: int | None = option(None, "Sessions at once; `421 4.7.0` above it.", min=1)
