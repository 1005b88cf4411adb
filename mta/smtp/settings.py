"""What the sessions of one listener have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

from mta.smtp.budget import UNKNOWN, Budget
from mta.smtp.coming import Coming
from mta.smtp.extensions import BEYOND, EVERYWHERE, Offers, choose
from mta.smtp.peer import CLOSED_TO_ALL, Peer, Permissions
from mta.smtp.reply import Reply
from mta.smtp.sasl import MECHANISMS, SCRAM_ITERATIONS

FUTURE_RELEASE_S: Final = 30 * 86_400


class ServerSettings:
    """The settings, with the replies that depend on them. Made once for a configuration, and never changed."""

    __slots__ = (
        "_offers", "_values", "auth_failures", "auth_without_tls", "budget", "clock", "coming", "command_length",
        "commands", "deliver_by_s", "errors", "fake_salt_key", "future_release_s", "greeting", "helo", "hostname",
        "intake_closed", "line_length", "mechanisms", "message_size", "permissions", "recipients", "scram_iterations",
        "unknown",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str,
        *,
        message_size: int = 50_000_000,
        recipients: int = 1000,
        line_length: int = 998,
        command_length: int = 2048,
        errors: int = 20,
        commands: int = 1000,
        permissions: Permissions = CLOSED_TO_ALL,
        starttls: bool = False,
        mechanisms: Iterable[str] = (),
        auth_without_tls: bool = False,
        auth_failures: int = 3,
        fake_salt_key: bytes = b"",
        scram_iterations: int = SCRAM_ITERATIONS,
        honours: Iterable[str] = EVERYWHERE,
        future_release_s: int = FUTURE_RELEASE_S,
        deliver_by_s: int = 0,
        clock: Callable[[], float] = time.time,
        intake_closed: Callable[[], Reply | None] | None = None,
        budget: Budget | None = None,
        coming: Coming | None = None,
    ) -> None:
        """The limits are those of `mta.config.schema.SmtpIn`. `budget` is what all sessions hold together, and
        `coming` counts their transactions.

        `permissions` says what a client may send. `intake_closed` is asked at every MAIL and may refuse it, with
        `452 4.3.1` when there is no room.

        STARTTLS is offered when `starttls` says that there is a certificate, AUTH with `mechanisms`, under TLS only
        unless `auth_without_tls`; `auth_failures` of a session are let pass. `fake_salt_key` is secret and the same in
        all processes, always; `scram_iterations` is what keys of users have (`mta.smtp.sasl`).

        `honours` are the extensions that what lies behind a session honours: of those that need that no other one
        is offered (`mta.smtp.extensions`). `future_release_s` is how long a message may be held, `deliver_by_s` the
        least time to deliver that a client may ask for, and `clock` gives seconds since the epoch.
        """
        self.hostname = hostname
        self.message_size = message_size
        self.recipients = recipients
        self.line_length = line_length
        self.command_length = command_length
        self.errors = errors
        self.commands = commands
        self.permissions = permissions
        self.mechanisms = tuple(name for name in MECHANISMS if name in tuple(mechanisms))
        self.auth_without_tls = auth_without_tls
        self.auth_failures = auth_failures
        self.fake_salt_key = fake_salt_key or secrets.token_bytes(32)
        self.scram_iterations = scram_iterations
        self.future_release_s = future_release_s
        self.deliver_by_s = deliver_by_s
        self.clock = clock
        self.intake_closed = intake_closed
        self.budget = budget or Budget(inf)
        self.coming = coming or Coming()
        self.unknown = min(UNKNOWN, message_size)
        self.greeting = Reply(220, "", (f"{hostname} ESMTP",)).to_bytes()
        self.helo = Reply(250, "", (hostname,)).to_bytes()
        self._values = {
            "PIPELINING": "", "SIZE": str(message_size), "ENHANCEDSTATUSCODES": "", "CHUNKING": "",
            "LIMITS": f"RCPTMAX={recipients}", "HELP": "",
        }  # fmt: skip
        if starttls:
            self._values["STARTTLS"] = ""
        details = {"FUTURERELEASE": str(future_release_s), "DELIVERBY": str(deliver_by_s) if deliver_by_s else ""}
        self._values |= {keyword: details.get(keyword, "") for keyword in BEYOND.intersection(honours)}
        if not future_release_s:
            self._values.pop("FUTURERELEASE", None)
        self._offers: dict[tuple[bool, bool, bool], Offers] = {}

    def offers(self, peer: Peer) -> Offers:
        """What this client is offered."""
        key = (peer.tls is not None, peer.tls is not None and bool(peer.tls.bindings), peer.may_xclient)
        offers = self._offers.get(key)
        if offers is None:
            chosen = choose(self._values, peer, self.mechanisms, auth_without_tls=self.auth_without_tls)
            offers = self._offers[key] = Offers(
                self.hostname, chosen, self.future_release_s, self.deliver_by_s, self.clock)
        return offers
