"""Programs that send mail from a command line: swaks, curl, msmtp, s-nail, mutt, and PHP's mail()."""

from __future__ import annotations

import re
import shutil
from typing import Final

from tests.clients.client import Call, Client, Example, said

# -- swaks -------------------------------------------------------------------------------------------------------------


def _swaks(call: Call) -> Example:
    words = ["swaks", "--from", call.sender, "--to", call.recipient, "--data", "@message.eml"]
    if call.way == "Unix socket":
        words += ["--socket", call.socket]
    elif call.way == "sendmail":
        words += ["--pipe", f"{call.sendmail} -bs"]
    else:
        words += ["--server", f"{call.host}:{call.port}"]
    if call.tls:
        words += ["--tls" if call.way == "STARTTLS" else "--tls-on-connect", "--tls-verify", "--tls-ca-path",
                  call.ca_file, "--auth", call.mechanism or "PLAIN,LOGIN", "--auth-user", call.user, "--auth-password",
                  call.password]
    return Example(tuple(words))


def _swaks_version() -> str:
    found = re.search(r"swaks version (\S+)", said("swaks", "--version"))
    return found[1] if found else ""


# -- curl --------------------------------------------------------------------------------------------------------------


def _curl(call: Call) -> Example:
    where = f"{'smtps' if call.way == 'implicit TLS' else 'smtp'}://{call.host}:{call.port or 25}"
    words = ["curl", "--silent", "--show-error", "--mail-from", call.sender, "--mail-rcpt", call.recipient,
             "--upload-file", "message.eml"]
    if call.way == "Unix socket":
        words += ["--unix-socket", call.socket]
    if call.way == "STARTTLS":
        words += ["--ssl-reqd"]
    if call.tls:
        words += ["--user", f"{call.user}:{call.password}"]
        words += ["--login-options", f"AUTH={call.mechanism}"] if call.mechanism else []
    return Example((*words, where))


def _curl_version() -> str:
    found = re.search(r"curl (\S+)", said("curl", "--version"))
    return found[1] if found else ""


# -- msmtp -------------------------------------------------------------------------------------------------------------


def _msmtp(call: Call) -> Example:
    lines = [f"host {call.host}", f"port {call.port}"]
    if call.way == "Unix socket":
        lines = [f"host {call.host}", f"socket {call.socket}"]
    lines.append(f"from {call.sender}")
    if call.tls:
        lines += ["tls on", f"tls_starttls {'on' if call.way == 'STARTTLS' else 'off'}",
                  f"tls_trust_file {call.ca_file}", f"auth {(call.mechanism or 'on').lower()}", f"user {call.user}",
                  f"password {call.password}"]
    if call.feature == "DSN":
        lines += ["dsn_notify success,failure", "dsn_return headers"]
    config = "account default\n" + "".join(f"{line}\n" for line in lines)
    return Example(("msmtp", "-C", "msmtprc", call.recipient), {"msmtprc": config}, reads="message.txt")


def _msmtp_version() -> str:
    found = re.search(r"msmtp version (\S+)", said("msmtp", "--version"))
    return found[1] if found else ""


# -- mail programs -----------------------------------------------------------------------------------------------------


def _s_nail(call: Call) -> Example:
    words = ["s-nail", "-:/", "-S", "v15-compat", "-S", "ttycharset=utf-8"]
    if call.way == "sendmail":
        words += ["-S", f"mta=file://{call.sendmail}"]
    else:
        scheme = "smtps" if call.way == "implicit TLS" else "smtp"
        login = f"{call.user}:{call.password}@" if call.tls else ""
        words += ["-S", f"mta={scheme}://{login}{call.host}:{call.port}"]
        words += ["-S", f"smtp-auth={(call.mechanism or 'PLAIN').lower() if call.tls else 'none'}"]
        words += ["-S", "smtp-use-starttls"] if call.way == "STARTTLS" else []
        words += ["-S", f"tls-ca-file={call.ca_file}", "-S", "tls-verify=strict"] if call.tls else []
    words += ["-S", f"from={call.sender}", "-r", call.sender, "-s", "the subject", "-.", call.recipient]
    return Example(tuple(words), reads="text.txt")


def _s_nail_version() -> str:
    found = re.search(r"v(\d\S+)", said("s-nail", "-V"))
    return found[1].rstrip(",") if found else ""


def _mutt(call: Call) -> Example:
    lines = ["set copy=no", f'set from="{call.sender}"', "set use_envelope_from", 'set charset="utf-8"']
    if call.way == "sendmail":
        lines.append(f'set sendmail="{call.sendmail} -oem -oi"')
    else:
        scheme = "smtps" if call.way == "implicit TLS" else "smtp"
        login = f"{call.user}:{call.password}@" if call.tls else ""
        lines.append(f'set smtp_url="{scheme}://{login}{call.host}:{call.port}"')
        if call.tls:
            lines += ["set ssl_force_tls", f'set certificate_file="{call.ca_file}"']
        else:
            lines.append("unset ssl_force_tls")
    lines += ['set dsn_notify="success,failure"', "set dsn_return=hdrs"] if call.feature == "DSN" else []
    lines += ["set use_8bitmime"] if call.feature == "8BITMIME" else []
    return Example(("mutt", "-n", "-F", "muttrc", "-s", "the subject", "--", call.recipient),
                   {"muttrc": "".join(f"{line}\n" for line in lines)}, reads="text.txt")


def _mutt_version() -> str:
    found = re.search(r"Mutt (\S+)", said("mutt", "-v"))
    return found[1] if found else ""


def _php_mail(call: Call) -> Example:
    return Example(("php", "-d", f"sendmail_path={call.sendmail} -t -i", "send.php"), {"send.php": f"""<?php
$sent = mail("{call.recipient}", "the subject", file_get_contents("text.txt"), [
    "From" => "{call.sender}", "Content-Type" => "text/plain; charset=utf-8", "MIME-Version" => "1.0",
    "Content-Transfer-Encoding" => "8bit"], "-f{call.sender}");
exit($sent ? 0 : 1);
"""})


def _php_version() -> str:
    found = re.search(r"PHP (\d[\d.]+)", said("php", "-v"))
    return found[1] if found else ""


def _cat(call: Call) -> Example:
    return Example((call.sendmail, "-i", "-f", call.sender, "--", call.recipient), reads="message.txt")


def _our_version() -> str:
    from mta import __version__
    return __version__ if shutil.which("sh") else ""


PROGRAMS: Final = (
    Client("swaks", "Debian's package swaks", _swaks_version, _swaks,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket", "sendmail"), ("PLAIN", "LOGIN"), ("8BITMIME",),
           adds=b"\r\n"),
    Client("curl", "Debian's package curl", _curl_version, _curl,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN", "LOGIN"), ("8BITMIME", "SMTPUTF8")),
    Client("msmtp", "Debian's package msmtp", _msmtp_version, _msmtp,
           ("in clear", "STARTTLS", "implicit TLS", "Unix socket"), ("PLAIN", "LOGIN", "SCRAM-SHA-256"),
           ("8BITMIME", "DSN")),
    Client("s-nail (mailx)", "Debian's package s-nail", _s_nail_version, _s_nail,
           ("in clear", "STARTTLS", "implicit TLS", "sendmail"), ("PLAIN", "LOGIN"), composes=True),
    Client("mutt", "Debian's package mutt", _mutt_version, _mutt,
           ("in clear", "STARTTLS", "implicit TLS", "sendmail"), ("PLAIN", "LOGIN", "SCRAM-SHA-256"),
           ("8BITMIME", "DSN"), composes=True),
    Client("PHP mail()", "Debian's package php-cli", _php_version, _php_mail, ("sendmail",), (), ("8BITMIME",),
           composes=True),
    Client("mta-sendmail", "", _our_version, _cat, ("sendmail",), (), ("8BITMIME", "SMTPUTF8")),
)
