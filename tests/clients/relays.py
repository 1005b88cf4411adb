"""MTAs whose mail goes through us: Postfix and Exim, each a private instance with the lines that its example shows."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import smtplib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.clients.client import LIMIT_S, Call, Client, ClientError, Example, Services, run, said
from tests.integration.servers import EXIM, POSTFIX_DAEMONS, Postfix

_LOOK_S: Final = 0.05

# -- Postfix -----------------------------------------------------------------------------------------------------------


def _postfix(call: Call) -> Example:
    lines = [f"relayhost = [{call.host}]:{call.port}"]
    if call.tls:
        lines += ["smtp_tls_security_level = secure", f"smtp_tls_CAfile = {call.ca_file}"]
        lines += ["smtp_tls_wrappermode = yes"] if call.way == "implicit TLS" else []
        lines += ["smtp_sasl_auth_enable = yes", "smtp_sasl_security_options = noanonymous",
                  f"smtp_sasl_password_maps = inline:{{[{call.host}]:{call.port}={call.user}:{call.password}}}"]
    return Example((), {"main.cf": "".join(f"{line}\n" for line in lines)})


def _run_postfix(call: Call, directory: Path, services: Services) -> None:
    """A Postfix with these lines, which gets the message by SMTP."""
    lines = [*_postfix(call).files["main.cf"].splitlines(), "smtp_tls_loglevel = 1", "smtputf8_enable = yes"]
    postfix: Postfix = services.get(f"postfix-{call.way.replace(' ', '-')}", lambda place: Postfix(place, lines))
    mail, rcpt = {"8BITMIME": (["BODY=8BITMIME"], []), "SMTPUTF8": (["BODY=8BITMIME", "SMTPUTF8"], []),
                  "DSN": (["RET=HDRS", "ENVID=run-7"], ["NOTIFY=SUCCESS,FAILURE"]), None: ([], [])}[call.feature]
    with smtplib.SMTP("127.0.0.1", postfix.port) as client:
        client.sendmail(call.sender, [call.recipient], (directory / "message.eml").read_bytes(), mail, rcpt)
    wanted = re.compile(rf"to=<{re.escape(call.recipient)}>.* status=(sent|deferred|bounced) \((.*)\)")
    found = wanted.search(_wait(postfix, lambda log: wanted.search(log) is not None))
    assert found is not None
    if found[1] != "sent":
        raise ClientError(f"Postfix: {found[1]}: {found[2]}")


def _wait(postfix: Postfix, happened: Callable[[str], bool]) -> str:
    """Look at the log until something is in it: a file tells nobody that it has grown. Raises ClientError."""
    deadline = time.monotonic() + LIMIT_S
    while not happened(log := postfix.log.read_text()):
        if time.monotonic() > deadline:
            raise ClientError(f"Postfix did nothing: {log[-1000:]}")
        time.sleep(_LOOK_S)
    return log


def _postfix_version() -> str:
    if os.getuid() != 0 or not POSTFIX_DAEMONS.exists() or shutil.which("postconf") is None:
        return ""
    found = re.search(r"= (\S+)", said("postconf", "-d", "mail_version"))
    return found[1] if found else ""


# -- Exim --------------------------------------------------------------------------------------------------------------


def _exim(call: Call) -> Example:
    smtps = ["  protocol = smtps"] if call.way == "implicit TLS" else []
    tls = [*smtps, "  hosts_require_tls = *", "  tls_verify_hosts = *", f"  tls_verify_certificates = {call.ca_file}",
           "  hosts_require_auth = *"] if call.tls else ["  hosts_avoid_tls = *"]
    name = call.mechanism or "PLAIN"
    secrets = f"^{call.user}^{call.password}" if name == "PLAIN" else f": {call.user} : {call.password}"
    lines = ["begin routers", "smarthost:", "  driver = manualroute", f"  route_list = * {call.host}::{call.port}",
             "  self = send" if call.host == "localhost" else "", "  transport = smarthost", "begin transports",
             "smarthost:", "  driver = smtp", *tls]
    lines += ["begin authenticators", "smarthost:", "  driver = plaintext", f"  public_name = {name}",
              f"  client_send = {secrets}"] if call.tls else []
    return Example((), {"exim.conf": "".join(f"{line}\n" for line in lines if line)})


def _run_exim(call: Call, directory: Path, services: Services) -> None:
    """An Exim with these lines: one process that takes the message and sends it."""
    shutil.chown(directory, "Debian-exim")
    head = (f"exim_path = {EXIM}\nprimary_hostname = exim.test\nspool_directory = {directory}/spool\n"
            f"log_file_path = {directory}/%slog\nhost_lookup =\nnever_users =\ntimezone =\nadd_environment =\n"
            f"keep_environment =\nlocal_from_check = false\ndisable_ipv6 = true\n")
    command = (EXIM, "-C", str(directory / "exim.conf"), "-odf", "-i", "-f", call.sender, "--", call.recipient)
    example = Example(command, {"exim.conf": head + _exim(call).files["exim.conf"]}, reads="message.txt")
    run(example, directory, call.ca_file)
    log = (directory / "mainlog").read_text()
    if " => " not in log:
        raise ClientError(f"Exim: {log[-1000:]}")


def _exim_version() -> str:
    if os.getuid() != 0 or not EXIM:
        return ""
    try:
        pwd.getpwnam("Debian-exim")
    except KeyError:
        return ""
    found = re.search(r"Exim version (\S+)", said(EXIM, "--version"))
    return found[1] if found else ""


RELAYS: Final = (
    Client("Postfix", "Debian's packages postfix and libsasl2-modules, and root", _postfix_version, _postfix,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN", "SCRAM-SHA-256"),
           ("8BITMIME", "SMTPUTF8", "DSN"), relays=True, send=_run_postfix),
    Client("Exim", "Debian's package exim4-daemon-light, or its exim4 named by EXIM4, and root", _exim_version, _exim,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN"), ("8BITMIME",), relays=True,
           send=_run_exim),
)
