"""docs/demo.md says what the demo does."""

from __future__ import annotations

from pathlib import Path

from mta.demo.reference import markdown

PAGE = Path(__file__).parents[2] / "docs" / "demo.md"


def test_the_table_of_receivers_is_up_to_date() -> None:
    """It is made by `python -m mta.demo.reference`."""
    assert markdown() in PAGE.read_text()
