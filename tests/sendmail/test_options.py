"""The command line: what programs say to sendmail is understood, or ignored, or an error that says what is there."""

from __future__ import annotations

import pytest

from mta.queue.records import NOTIFY_DELAY, NOTIFY_FAILURE, NOTIFY_NEVER
from mta.sendmail import options
from mta.sendmail.options import Options, UsageError, parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sendmail -t -i", Options(from_header=True, dots_are_text=True)),
        ("sendmail -ti -fme@x.test", Options(from_header=True, dots_are_text=True, sender="me@x.test")),
        ("sendmail -oi -f me@x.test -- -you@x.test", Options(dots_are_text=True, sender="me@x.test",
                                                              recipients=["-you@x.test"])),
        ("sendmail -r <> -F Me a b -t", Options(sender="<>", full_name="Me", recipients=["a", "b", "-t"])),
        ("sendmail -FMe -v a", Options(full_name="Me", verbose=True, recipients=["a"])),
        ("sendmail -N delay,failure -R hdrs -V id+1 a",
         Options(notify=NOTIFY_DELAY | NOTIFY_FAILURE, ret="HDRS", envid="id+2B1", recipients=["a"])),
        ("sendmail -Nnever -Rfull a", Options(notify=NOTIFY_NEVER, ret="FULL", recipients=["a"])),
        ("sendmail -bs", Options(mode=options.SMTP)),
        ("sendmail -Am -Ac -B8BITMIME -h 3 -L tag -G -U -n -m -em -oem -o7 -odb a", Options(recipients=["a"])),
        ("sendmail -om -oMrx -p x -X /log -O Timeout=1m -c -x -d0.1 -bm a", Options(recipients=["a"])),
        ("sendmail -O IgnoreDots=true a", Options(dots_are_text=True, recipients=["a"])),
        ("sendmail -C /x.yaml a", Options(config="/x.yaml", recipients=["a"])),
        ("sendmail -bp", Options(mode=options.QUEUE)),
        ("/usr/bin/mailq", Options(mode=options.QUEUE)),
        ("/usr/bin/newaliases", Options(mode=options.ALIASES)),
        ("sendmail -bi", Options(mode=options.ALIASES)),
        ("sendmail -I", Options(mode=options.ALIASES)),
        ("sendmail -q", Options(mode=options.FLUSH)),
        ("sendmail -q15m", Options(mode=options.FLUSH)),
        ("sendmail -", Options(recipients=["-"])),
    ],
)
def test_what_programs_say_is_understood(line: str, expected: Options) -> None:
    """As Postfix's sendmail reads it: values attached or apart, options end at the first recipient or at `--`."""
    program, *arguments = line.split(" ")
    assert parse(program, arguments) == expected


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-Z", "no option -Z"),
        ("--help", "no option '--help'"),
        ("-t -f", "-f needs a value"),
        ("-bd", "mta run"),
        ("-bv a", "-bv is not supported"),
        ("-N often", "expected never"),
        ("-N never,delay", "expected never"),
        ("-R body", "expected hdrs or full"),
        ("-V ü", "-V"),
    ],
)
def test_what_is_wrong_is_told(line: str, what: str) -> None:
    """EX_USAGE, and what there is instead."""
    with pytest.raises(UsageError, match=what) as caught:
        parse("sendmail", line.split(" "))
    assert caught.value.exit_code == 64
