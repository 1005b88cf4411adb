"""Runs the sendmail command into a directory, and reads what it put there as the MTA does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mta.config.schema import SmtpIn
from mta.inject.batch import BatchReader
from mta.inject.formats import Submission

ROOT = Path(__file__).parents[2]


def make_directory(path: Path) -> Path:
    """A pickup directory of an MTA that is down."""
    path.joinpath("tmp").mkdir(parents=True)
    path.joinpath(".settings").write_text('{"hostname": "host.example", "message_size": 100000, "recipients": 3}')
    return path


def run(
    directory: Path, arguments: Sequence[str], content: bytes = b"", *, environment: dict[str, str] | None = None,
    program: str = "sendmail", strace: str = "", limit_file_size: int = 0, become: int = 0,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as `program` with this on standard input. `strace` is a file for its system calls; `become` is a
    user and group to become, in the process, as he might not be able to start this Python."""
    code = "import sys; from mta.sendmail import main; sys.exit(main(sys.argv[1:]))"
    if limit_file_size:
        code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit_file_size}, -1)); {code}"
    if become:
        code = (f"import os, pwd, syslog, mta.sendmail; os.setgroups([]); os.setgid({become}); os.setuid({become}); "
                f"os.umask(0o77); {code}")
    before = ["strace", "-f", "-e", "trace=file,fsync", "-o", strace] if strace else []
    return subprocess.run(
        [*before, sys.executable, "-c", code, program, *arguments], input=content, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MTA_PICKUP": str(directory), **(environment or {})})


def taken(directory: Path) -> list[Submission]:
    """The messages in all files of the directory."""
    found: list[Submission] = []
    for path in sorted(directory.glob("*.bsmtp")):
        with path.open("rb") as file:
            found += iter(BatchReader(file, SmtpIn(), "host.example").next, None)
    return found


def sent(directory: Path, arguments: Sequence[str], content: bytes) -> Submission:
    """The one message that the command made of `content`."""
    done = run(directory, arguments, content)
    assert (done.returncode, done.stderr) == (0, b"")
    (submission,) = taken(directory)
    assert list(directory.joinpath("tmp").iterdir()) == []
    return submission


def addresses(submission: Submission) -> list[str]:
    """The recipients."""
    return [recipient.address for recipient in submission.envelope.recipients]
