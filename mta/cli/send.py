"""`mta send`: inject one message over SMTP."""

from __future__ import annotations

import argparse
import email.policy
import email.utils
import smtplib
import sys
from email.message import EmailMessage
from pathlib import Path
from typing import Final

from mta.cli.options import add_config, add_parser, load_config
from mta.cli.text import printable
from mta.config.hosts import Endpoint
from mta.control import exits

_DESCRIPTION = """\
Hand a message to the MTA over SMTP and print its reply. The message is a file as RFC 5322 has it (line ends may be LF),
or standard input; with --subject or --text it is made. Exit code 0: accepted for every recipient; 75: refused for now;
65: refused for good; 69: no connection."""

_EXAMPLES = """\
  mta send --from me@example.com --to you@example.org --subject Hello --text 'How are you?'
  mta send --from me@example.com --to a@example.org --to b@example.net mail.eml
  mta send --server 127.0.0.1:2525 --from me@example.com --to you@example.org < mail.eml"""

TIMEOUT_S: Final = 120.0

_SEVERITY: Final = (exits.OK, exits.TEMPORARY, exits.DATA)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "send", "inject a message over SMTP", _DESCRIPTION, _EXAMPLES)
    add_config(parser)
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="where to connect (default: the first listener of the configuration)"
    )
    parser.add_argument("--from", dest="sender", metavar="ADDRESS", required=True, help="sender; '' is the null sender")
    parser.add_argument("--to", action="append", metavar="ADDRESS", required=True, help="recipient, may be repeated")
    parser.add_argument("--subject", metavar="TEXT", help="make a message with this subject")
    parser.add_argument("--text", metavar="TEXT", help="make a message with this text")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the message (default: standard input)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send the message."""
    server = _server(options)
    content = _content(options)
    try:
        smtp = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
        try:
            code = _send(smtp, options.sender, options.to, content)
        finally:
            smtp.close()
        return code
    except smtplib.SMTPResponseException as error:  # greeting or EHLO refused
        return _refused("session", error.smtp_code, error.smtp_error)
    except (OSError, smtplib.SMTPException) as error:
        raise exits.OperatorError(exits.UNAVAILABLE, f"no session with {server}: {error}") from error


def _send(smtp: smtplib.SMTP, sender: str, recipients: list[str], content: bytes) -> int:
    """One transaction. Prints the reply of each command that matters; returns the exit code."""
    smtp.ehlo_or_helo_if_needed()
    options = ["BODY=8BITMIME"] if not content.isascii() and smtp.has_extn("8bitmime") else []
    if not all(map(str.isascii, (sender, *recipients))):
        if not smtp.has_extn("smtputf8"):
            raise exits.OperatorError(exits.DATA, "the server takes no addresses with letters beyond ASCII")
        smtp.command_encoding = "utf-8"
        options.append("SMTPUTF8")
    code, text = smtp.mail(sender, options)
    if code != 250:
        return _refused(f"sender {sender or '<>'}", code, text)
    result = exits.OK
    accepted = 0
    for recipient in recipients:
        code, text = smtp.rcpt(recipient)
        if code in (250, 251):
            accepted += 1
        else:
            result = max(_refused(f"recipient {recipient}", code, text), result, key=_SEVERITY.index)
    if not accepted:
        return result
    try:
        code, text = smtp.data(content)
    except smtplib.SMTPDataError as error:
        return _refused("message", error.smtp_code, error.smtp_error)
    if code != 250:
        return _refused("message", code, text)
    print(_reply(code, text))
    try:
        smtp.putcmd("quit")  # not waited for: the message is accepted, whatever the answer
    except OSError:
        pass
    return result


def _server(options: argparse.Namespace) -> Endpoint:
    if options.server:
        try:
            return Endpoint.parse(options.server)
        except ValueError as error:
            raise exits.OperatorError(exits.USAGE, f"--server {options.server!r}: {error}") from error
    config = load_config(options.config)
    if not config.listeners:
        raise exits.OperatorError(exits.CONFIG, f"{options.config} has no listeners: name a --server")
    host, port = config.listeners[0].smtp
    if not port:
        raise exits.OperatorError(exits.CONFIG, f"{options.config} listens on any free port: name a --server")
    return Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def _content(options: argparse.Namespace) -> bytes:
    if options.subject is not None or options.text is not None:
        if options.file is not None:
            raise exits.OperatorError(exits.USAGE, "either FILE, or --subject and --text")
        return _made(options.sender, options.to, options.subject or "", options.text or "")
    try:
        content = sys.stdin.buffer.read() if options.file in (None, "-") else Path(options.file).read_bytes()
    except OSError as error:
        raise exits.OperatorError(exits.NO_INPUT, f"cannot read {options.file}: {error.strerror}") from error
    if not content.strip():
        raise exits.OperatorError(exits.NO_INPUT, "the message is empty")
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _made(sender: str, recipients: list[str], subject: str, text: str) -> bytes:
    plain = all(map(str.isascii, (sender, *recipients)))
    message = EmailMessage(email.policy.SMTP if plain else email.policy.SMTPUTF8)
    try:
        message["From"] = sender or "<>"
        message["To"] = ", ".join(recipients)
        message["Subject"] = subject
    except ValueError as error:
        raise exits.OperatorError(exits.USAGE, f"no header can be made of that: {error}") from error
    message["Date"] = email.utils.format_datetime(email.utils.localtime())
    message.set_content(text)
    return message.as_bytes()


def _refused(what: str, code: int, text: bytes | str) -> int:
    print(f"mta: {printable(what)} refused: {_reply(code, text)}", file=sys.stderr)
    return exits.TEMPORARY if 400 <= code < 500 else exits.DATA


def _reply(code: int, text: bytes | str) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return f"{code} {printable(' '.join(text.split()))}"
