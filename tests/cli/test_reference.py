"""docs/cli.md says what the commands say."""

from __future__ import annotations

from pathlib import Path

from mta.cli.reference import markdown

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_of_the_commands_is_up_to_date() -> None:
    """Made anew by `python -m mta.cli.reference > docs/cli.md`."""
    assert PAGE.read_text() == markdown()
