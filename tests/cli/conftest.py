"""Fixtures of the commands' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mta.cli import main
from tests.cli.helpers import FakeControl, Handler


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Callable[[Handler], FakeControl]]:
    """Start a control process of canned answers in `tmp_path`."""
    started: list[FakeControl] = []

    def starter(handler: Handler) -> FakeControl:
        started.append(FakeControl(tmp_path, handler))
        return started[-1]

    yield starter
    for fake in started:
        fake.close()


@pytest.fixture
def mta(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run an `mta` command in this process."""

    def runner(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return runner
