"""Bombs: whatever of ours reads content takes steps and memory in proportion to its size, up to the largest size."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mta.config.schema import Config
from mta.inject.intake import Accepted
from tests.hostile import bombs
from tests.hostile.bombs import BOMBS, Bomb

ROOT = Path(__file__).parents[2]
PROCESSOR_S = 60  # for all of them: they take three or four, one that is quadratic takes minutes, a cubic one days
MEMORY = 150_000_000  # with all that is loaded, which is 50; the largest bombs have 2 MB


def test_the_largest_end_and_hold_little() -> None:
    """Each reader with each bomb at its largest, within a bound of processor time and memory."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S))

    done = subprocess.run([sys.executable, "-m", "tests.hostile.bombs"], cwd=ROOT, capture_output=True, text=True,
                          check=False, preexec_fn=limit)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(bombs.names()), (done.returncode, done.stderr[-2000:])
    assert done.returncode == 0
    assert [row[0] for row in rows if int(row[1]) > MEMORY] == []


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
def test_steps_grow_with_the_size(bomb: Bomb) -> None:
    """Twice the size takes twice the steps, but for what every call takes."""
    size = min(bomb.largest // 2, 4000)
    bombs.steps(bomb, size)  # what is loaded at the first call
    small, large = bombs.steps(bomb, size), bombs.steps(bomb, 2 * size)
    assert large <= 2.2 * small + 500


def test_nobody_looks_into_parts() -> None:
    """Nested parts and archives come out as they came in, behind our lines: MIME is nobody's business here."""
    for make in (bombs.nested_parts, bombs.archive):
        content = make(100_000)
        accepted = bombs.prepare(content)
        assert isinstance(accepted, Accepted)
        assert accepted.message.content is not None
        assert accepted.message.content.endswith(content)
        assert accepted.message.size < len(content) + 1000


def test_the_limits_that_bombs_are_as_large_as() -> None:
    """They are those of the configuration."""
    config = Config(hostname="mx.example.net")
    assert (config.checks.header_size, config.checks.field_size) == (bombs.HEADER, bombs.FIELD)
    assert config.smtp.command_length == 2048


def test_a_notification_is_bounded_whatever_hosts_said() -> None:
    """A hundred recipients, each refused with as much as is kept of a reply: their words take the room there is
    for them together, and who said little is quoted whole."""
    built = bombs.notification(["550 " + "x" * 12_000])
    assert len(built.content) < 200_000
    assert built.content.count(b"...") == 200  # in both parts, of each
    built = bombs.notification(["550 5.1.1 No such user"])
    assert built.content.count(b"550 5.1.1 No such user\r\n") == 200
    assert b"..." not in built.content


def test_what_is_kept_of_a_reply_is_bounded() -> None:
    """All 128 lines are read, 8 KB or little more are kept; a hundred recipients may each be answered so."""
    data = b"".join(b"550-" + b"x" * 4000 + b"\r\n" for _ in range(127)) + b"550 end\r\n"
    ((reply, _),) = bombs.replies(data)
    assert reply.code == 550
    assert sum(map(len, reply.lines)) < 2 * 8192
    offers = b"250-mx\r\n" + b"250-X\r\n" * 100 + b"250-SIZE 5\r\n250 PIPELINING\r\n"
    ((_, can),) = bombs.replies(offers)
    assert (can.size, can.pipelining) == (5, True)
