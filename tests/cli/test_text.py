"""Tables, times and sizes for people; the command itself."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta import __version__
from mta.cli import COMMANDS, text
from mta.cli.text import Column, print_table
from mta.control import exits

ROOT = Path(__file__).parents[2]
MTA = Callable[..., Any]
COLUMNS = (Column("NAME", shrinks=True), Column("N", right=True), Column("WHY", shrinks=True))


class Terminal(io.StringIO):
    """A terminal of 60 columns, the least that tables are made for."""

    def isatty(self) -> bool:
        """It is one, though its size cannot be asked."""
        return True

    def fileno(self) -> int:
        """Of a pseudo-terminal."""
        return self.descriptor

    descriptor = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """60 columns wide."""
    ours, theirs = pty.openpty()
    found = Terminal()
    found.descriptor = theirs
    yield found
    os.close(ours)
    os.close(theirs)


def test_a_table_in_a_pipe_is_never_cut() -> None:
    """Columns are as wide as their widest cell, no blanks at the ends of lines."""
    out = io.StringIO()
    print_table(COLUMNS, [["a" * 100, "5", "x" * 100], ["b", "12,345", ""]], out)
    assert out.getvalue().splitlines() == [
        f"NAME{'':96}       N  WHY", f"{'a' * 100}       5  {'x' * 100}", f"b{'':99}  12,345"
    ]  # fmt: skip


def test_a_table_fits_the_terminal(terminal: Terminal) -> None:
    """The widest columns that may shrink are cut, the others never."""
    print_table(COLUMNS, [["example.org", "12,345,678", "x" * 500], ["漢字.example", "1", "short"]], terminal)
    lines = terminal.getvalue().splitlines()
    assert lines[1].startswith("example.org   12,345,678  xxx")
    assert lines[1].endswith("x…")
    assert len(lines[1]) == 60
    assert lines[2] == "漢字.example           1  short"


def test_a_cell_is_one_line() -> None:
    """Remote text is data."""
    out = io.StringIO()
    print_table(COLUMNS, [["a\nb\x1b[31m", "1", "\udcff"]], out)
    assert out.getvalue().splitlines()[1] == r"a\nb\x1b[31m  1  \udcff"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5, "0ms"), (0.85, "850ms"), (1, "1s"), (59.9, "59s"), (60, "1m"), (245, "4m05s"), (600, "10m"), (3599, "59m"),
     (3600, "1h00m"), (86_399, "23h59m"), (86_400, "1d00h"), (10**6, "11d13h")],
)  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    """Two units at most."""
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (9_949, "9.9 KB"), (9_960, "10 KB"), (999_600, "1.0 MB"),
     (48_000_000, "48 MB"), (5 * 10**15, "5000.0 TB")],
)  # fmt: skip
def test_sizes(number: int, expected: str) -> None:
    """Decimal, two or three digits."""
    assert text.size(number) == expected


def test_times() -> None:
    """None is a dash, the past is now."""
    assert (text.until(0, 5), text.until(5, 5), text.until(2_000_005, 5)) == ("-", "now", "in 2s")
    assert (text.age(0, 5), text.age(5, 60_000_005)) == ("-", "1m")
    assert (text.stamp(0), text.stamp(1_790_000_000_000_000)) == ("-", "2026-09-21T14:13:20Z")
    assert (text.count(1, "queue"), text.count(12_345, "queue")) == ("1 queue", "12,345 queues")


def test_every_command_explains_itself_with_examples(mta: MTA) -> None:
    """`--help` of each ends with lines to copy; `mta --help` lists them."""
    listed = mta("--help").out
    for command in COMMANDS:
        if (ROOT / "mta" / "cli" / f"{command}.py").exists():
            assert f"    {command} " in listed
            result = mta(command, "--help")
            assert result.code == 0
            assert "examples:\n" in result.out.split("options:")[-1]
            assert f"  mta {command}" in result.out


def test_wrong_use_is_exit_code_64(mta: MTA) -> None:
    """No command, an unknown one, an unknown option."""
    for arguments in ((), ("frobnicate",), ("status", "--frobnicate"), ("run", "--conf", "x")):
        assert mta(*arguments).code == exits.USAGE
    assert mta("--version").out == f"mta {__version__}\n"


LOADED = """
import sys
from mta.cli import main
main(["status", "--run", "/nonexistent"])
sys.exit(any(name in sys.modules for name in ("gevent", "mta.cli.sandbox", "mta.control.supervisor")))
"""


def test_only_the_command_that_was_typed_is_loaded() -> None:
    """`mta status` needs neither gevent nor the sandbox, so it answers at once."""
    result = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`mta ... | head` ends quietly."""
    events = tmp_path / "shards" / "000" / "events"
    events.mkdir(parents=True)
    line = '{"time":"2026-01-01T00:00:00.000000Z","event":"suspended"}\n'
    (events / "20260101-000000-000.jsonl").write_text(line * 50_000)
    with subprocess.Popen(
        [sys.executable, "-m", "mta", "events", "--spool", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == exits.OK
