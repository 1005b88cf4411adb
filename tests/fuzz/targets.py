"""The table of what is fuzzed: for each target the function that takes an input, what to begin with, and words of its
language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tests.fuzz import (
    addresses,
    client_machine,
    doors,
    files,
    header,
    network,
    notices,
    repetition,
    server_machine,
    settings,
    stored,
)

Seeds = Sequence[bytes] | Callable[[], Sequence[bytes]]


class Target(NamedTuple):
    """One thing that is fuzzed. `run` raises whatever is a finding."""

    name: str
    run: Callable[[bytes], None]
    given: Seeds
    words: Sequence[bytes] = ()
    longest: int = 400  # octets of an input

    @property
    def seeds(self) -> Sequence[bytes]:
        """Inputs to begin with."""
        return self.given() if callable(self.given) else self.given


TARGETS: Final = {
    target.name: target for target in (
        Target("server", server_machine.run, server_machine.SEEDS, server_machine.WORDS),
        Target("client", client_machine.run, client_machine.SEEDS, client_machine.WORDS, 200),
        Target("replies", network.run_replies, network.REPLY_SEEDS, network.REPLY_WORDS),
        Target("path", addresses.run_path, addresses.PATH_SEEDS, addresses.PATH_WORDS, 300),
        Target("mailboxes", addresses.run_mailboxes, addresses.MAILBOX_SEEDS, addresses.MAILBOX_WORDS, 300),
        Target("parameters", addresses.run_parameters, addresses.PARAMETER_SEEDS, addresses.PARAMETER_WORDS, 300),
        Target("xtext", addresses.run_xtext, addresses.XTEXT_SEEDS, addresses.XTEXT_WORDS, 100),
        Target("stuffing", files.run_stuffing, files.STUFFING_SEEDS, files.STUFFING_WORDS),
        Target("header", header.run, header.SEEDS, header.WORDS),
        Target("intake", header.run_intake, tuple(b"\x11" + seed for seed in header.SEEDS), header.WORDS),
        Target("message", files.run_message, files.MESSAGE_SEEDS, files.MESSAGE_WORDS),
        Target("batch", files.run_batch, files.BATCH_SEEDS, files.BATCH_WORDS, 200),
        Target("sendmail", files.run_sendmail, files.SENDMAIL_SEEDS, files.SENDMAIL_WORDS),
        Target("options", files.run_options, files.OPTIONS_SEEDS, (), 100),
        Target("proxy", doors.run_proxy, doors.PROXY_SEEDS, doors.PROXY_WORDS, 150),
        Target("xclient", doors.run_xclient, doors.XCLIENT_SEEDS, doors.XCLIENT_WORDS, 200),
        Target("sasl", doors.run_sasl, doors.SASL_SEEDS, doors.SASL_WORDS, 150),
        Target("users", doors.run_users, doors.USERS_SEEDS, doors.USERS_WORDS),
        Target("frame", stored.run_frame, stored.frame_seeds, (), 30),
        Target("operations", stored.run_operations, stored.operation_seeds, (), 900),
        Target("records", stored.run_records, stored.record_seeds, (), 300),
        Target("dns", network.run_dns, network.dns_seeds, (), 300),
        Target("notices", notices.run, notices.SEEDS, notices.WORDS),
        Target("control", network.run_control, network.control_seeds, (), 600),
        Target("filter", network.run_filter, network.FILTER_SEEDS, network.FILTER_WORDS, 120),
        Target("repetition", repetition.run, repetition.SEEDS, repetition.WORDS, 60),
        Target("config", settings.run_config, settings.config_seeds, settings.CONFIG_WORDS, 800),
        Target("units", settings.run_units, settings.UNIT_SEEDS, settings.UNIT_WORDS, 80),
    )
}  # fmt: skip
