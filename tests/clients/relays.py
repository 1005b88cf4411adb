"""MTAs whose mail goes through us: Postfix, Exim, OpenSMTPD, each a private instance with the lines of its example."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import smtplib
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench import namespace, opensmtpd
from bench.programs import free_port
from tests.clients.client import LIMIT_S, Call, Client, ClientError, Example, Services, run, said
from tests.integration.servers import EXIM, POSTFIX_DAEMONS, Postfix, wait_for_port

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
    found = _wait(postfix.log, rf"to=<{re.escape(call.recipient)}>.* status=(sent|deferred|bounced) \((.*)\)")
    if found[1] != "sent":
        raise ClientError(f"Postfix: {found[1]}: {found[2]}")


def _wait(log: Path, line: str) -> re.Match[str]:
    """Look at a log until it has a line: a file tells nobody that it has grown. Raises ClientError."""
    deadline = time.monotonic() + LIMIT_S
    while (found := re.search(line, log.read_text())) is None:
        if time.monotonic() > deadline:
            raise ClientError(f"nothing happened: {log.read_text()[-1000:]}")
        time.sleep(_LOOK_S)
    return found


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
    if not re.search(r" => .* K C=", log):  # K: by BDAT, as docs/clients.md says
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


# -- OpenSMTPD ---------------------------------------------------------------------------------------------------------


def _opensmtpd(call: Call) -> Example:
    scheme = {"in clear": "smtp+notls", "STARTTLS": "smtp+tls", "implicit TLS": "smtps"}[call.way]
    if not call.tls:
        return Example((), {"smtpd.conf": f'action "out" relay host {scheme}://{call.host}:{call.port}\n'
                                          'match from any for any action "out"\n'})
    return Example((), {
        "smtpd.conf": 'table secrets file:/etc/mail/secrets\n'
                      f'action "out" relay host {scheme}://us@{call.host}:{call.port} auth <secrets>\n'
                      'match from any for any action "out"\n',
        "secrets": f"us {call.user}:{call.password}\n"})


def _run_opensmtpd(call: Call, directory: Path, services: Services) -> None:
    """An OpenSMTPD with these lines, which gets the message by SMTP."""
    files = _opensmtpd(call).files
    server: OpenSmtpd = services.get(
        f"opensmtpd-{call.way.replace(' ', '-')}", lambda place: OpenSmtpd(place, files, call.ca_file))
    mail, rcpt = (["RET=HDRS", "ENVID=run-7"], ["NOTIFY=SUCCESS,FAILURE"]) if call.feature == "DSN" else ([], [])
    with smtplib.SMTP("127.0.0.1", server.port) as client:
        client.sendmail(call.sender, [call.recipient], (directory / "message.eml").read_bytes(), mail, rcpt)
    found = _wait(server.log, rf".*mta delivery .*to=<{re.escape(call.recipient)}>.* result=\"?(\w+).*")
    if found[1] != "Ok":
        raise ClientError(f"OpenSMTPD: {found[0]}")


class OpenSmtpd:
    """One of our own, in a mount namespace in which the paths that are compiled in are ours."""

    def __init__(self, directory: Path, files: Mapping[str, str], ca_file: str) -> None:
        self.log = directory / "log"
        self.port = free_port(["127.0.0.1"])
        mail = directory / "mail"
        over: dict[Path, str] = {directory / "spool": "/var/spool", directory / "run": "/run",
                                 directory / "lib": "/var/lib"}
        for path in (*over, mail, directory / "lib" / "opensmtpd" / "empty"):
            path.mkdir(mode=0o755, parents=True)
        for name, content in files.items():
            (mail / name).write_text(content.replace("/etc/mail/", f"{mail}/"))
        config = mail / "smtpd.conf"
        config.write_text(f"listen on 127.0.0.1 port {self.port}\n{config.read_text()}")
        config.chmod(0o600)
        (directory / "ca.pem").write_bytes(Path(ca_file).read_bytes())
        over[directory / "ca.pem"] = "/etc/ssl/certs/ca-certificates.crt"
        over.update(opensmtpd.users(directory))
        program = opensmtpd.where()
        assert program is not None
        self._command = namespace.with_resolver("127.0.0.1", directory, [program, "-d", "-f", str(config)], over)

    def __enter__(self) -> OpenSmtpd:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for_port(self.port)
        except AssertionError:
            self.__exit__()
            raise ClientError(f"OpenSMTPD did not start: {self.log.read_text()[-1000:]}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(LIMIT_S)


def _opensmtpd_version() -> str:
    return "" if opensmtpd.where() is None or namespace.unavailable("OpenSMTPD") else opensmtpd.version()


RELAYS: Final = (
    Client("Postfix", "Debian's packages postfix and libsasl2-modules, and root", _postfix_version, _postfix,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN", "SCRAM-SHA-256"),
           ("8BITMIME", "SMTPUTF8", "DSN"), relays=True, send=_run_postfix),
    Client("Exim", "Debian's package exim4-daemon-light, or its exim4 named by EXIM4, and root", _exim_version, _exim,
           ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN"), ("8BITMIME",), relays=True,
           send=_run_exim),
    Client("OpenSMTPD", "Debian's package opensmtpd, or its smtpd named by OPENSMTPD, and root", _opensmtpd_version,
           _opensmtpd, ("in clear", "STARTTLS", "implicit TLS"), ("PLAIN", "LOGIN"), ("8BITMIME", "DSN"), relays=True,
           send=_run_opensmtpd),
)
