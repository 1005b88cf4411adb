"""The sendmail-compatible command: takes a message from standard input and puts it into the pickup directory.

It never talks to the MTA. A message is accepted when it is durable in the directory, which is just as well while the
MTA is down, and the same path is used, and tested, every time. The MTA learns at once of a new file.

Who may send is decided by the permissions of the directory; no program here runs with rights that its caller does not
have. The file belongs to the caller, so the MTA knows his user id whatever the message says.

Exit codes are those of sysexits.h (`mta.control.exits`). Errors go to standard error and to syslog (facility mail), as
programs that call sendmail tend to throw the former away.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from mta.control import exits
from mta.message import headers
from mta.queue.records import EIGHT_BIT
from mta.sendmail import drop, message, options
from mta.sendmail.message import Author, MessageError
from mta.sendmail.settings import Settings, find
from mta.smtp.envelope import Envelope

_CHUNK = 1_048_576


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv if argv is None else argv)
    try:
        return _run(options.parse(arguments[0], arguments[1:]))
    except exits.OperatorError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except OSError as error:
        _complain(f"{error.filename or 'standard input'}: {error.strerror}")
        return exits.IO_ERROR
    except MemoryError:
        _complain("out of memory")
        return exits.TEMPORARY
    except Exception as error:
        import traceback  # here, because it should never be needed

        traceback.print_exc()
        _complain(f"bug: {type(error).__name__}")
        return exits.SOFTWARE


def _run(wanted: options.Options) -> int:
    if wanted.mode == options.ALIASES:
        return exits.OK  # there are none: this MTA delivers nothing locally
    if wanted.mode == options.FLUSH:
        print("sendmail: what waits is tried when it is due; `mta retry` has it tried now", file=sys.stderr)
        return exits.OK
    if wanted.mode == options.QUEUE:
        from mta.cli import main as mta  # here, because the rest needs none of it

        return mta(["queue", *(["-c", wanted.config] if wanted.config is not None else [])])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    settings = find(wanted.config, os.environ)
    if wanted.mode == options.SMTP:
        from mta.sendmail.session import Session  # here, as few need it

        return Session(settings, 0, 1).run()
    name = send(wanted, settings, _author(), _read(settings.message_size))
    if wanted.verbose:
        print(f"sendmail: accepted as {settings.directory}/{name}")
    return exits.OK


def send(wanted: options.Options, settings: Settings, author: Author, raw: bytes) -> str:
    """Put one message into the pickup directory; the name of its file. Raises OperatorError."""
    if not (wanted.from_header or wanted.recipients):
        raise options.UsageError("no recipients: name them on the command line, or have them read from the header (-t)")
    domain = settings.hostname
    content, end = message.with_header(message.lines_of(raw, dots_are_text=wanted.dots_are_text))
    content = message.without_strays(content, end)
    envelope = Envelope(esmtp=True, ret=wanted.ret, envid=wanted.envid)
    envelope.sender = message.sender(wanted.sender, author, domain, envelope)
    message.add_recipients(envelope, wanted.recipients, domain)
    if wanted.from_header:
        message.add_recipients(envelope, message.recipients_in(content, end, domain), domain)
        content = headers.remove(content, ("Bcc", "Resent-Bcc", "Return-Path"))
        end = headers.section_end(content)
    if not envelope.recipients:
        raise options.UsageError("no recipients: there is no address in To, Cc and Bcc of the message")
    content = message.with_missing_fields(content, max(end, 0), author, wanted.full_name, envelope, settings)
    content = message.folded(content, headers.section_end(content), settings.line_length)
    if len(content) > settings.message_size:
        raise MessageError(f"the message has {len(content)} octets, more than smtp.message_size "
                           f"({settings.message_size})")
    if fault := message.fault(content, settings):
        raise MessageError(fault)
    if not content.isascii():
        envelope.flags |= EIGHT_BIT
    for recipient in envelope.recipients:
        recipient.notify = wanted.notify
    return drop.put(settings.directory, drop.batch(envelope, content, settings.recipients))


def _read(limit: int) -> bytes:
    """All of standard input. Memory is bounded: what is too large is not read to its end."""
    chunks: list[bytes] = []
    size = 0
    while chunk := os.read(0, _CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise MessageError(f"the message has more than {limit} octets (smtp.message_size)")
    return b"".join(chunks)


def _author() -> Author:
    import pwd

    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Author(f"uid{uid}")
    full_name = entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())
    return Author(entry.pw_name, full_name)


def _stop(number: int, frame: FrameType | None) -> None:
    raise exits.OperatorError(exits.TEMPORARY, f"ended by signal {number}")


def _complain(text: str) -> None:
    import syslog

    line = "".join(char if char.isprintable() else " " for char in text)
    print(f"sendmail: {line}", file=sys.stderr)
    syslog.openlog("mta-sendmail", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(syslog.LOG_ERR, f"uid={os.getuid()}: {line}")
