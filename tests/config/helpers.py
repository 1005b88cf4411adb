"""What the tests of the configuration share."""

from __future__ import annotations

from mta.config.loader import read_text

HOSTNAME = "hostname: mta.example.net\n"


def problems(text: str) -> list[str]:
    """The problems of a whole file, as `LINE:COLUMN: message`."""
    return [f"{problem.line}:{problem.column}: {problem.message}" for problem in read_text(text).problems]


def problems_after_hostname(text: str) -> list[str]:
    """The problems of the options in `text`, which begins in line 2 behind a correct `hostname`."""
    return problems(HOSTNAME + text)
