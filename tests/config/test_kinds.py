"""All types that are written as a text: any text is read or refused."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from mta.config.kinds import KINDS


@given(st.text(max_size=80))
@example("0" * 30 + "\x1f" * 18 + "\U0001004e" * 13)  # ten characters each where a report shows them
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes a reader raise anything but ValueError, and what it says fits into one line of a report."""
    for kind in KINDS.values():
        value, refusal = None, ""
        try:
            value = kind.parse(text)
        except ValueError as error:
            refusal = str(error)
        assert len(refusal) < 300
        assert refusal or kind.parse(kind.format(value)) == value
