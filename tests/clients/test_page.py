"""docs/clients.md: its examples are those that are tried, and its table loses no row."""

from __future__ import annotations

from tests.clients import page
from tests.clients.cases import CLIENTS
from tests.clients.page import HEAD, PAGE, Outcome, expected, row, rows


def test_the_examples_are_those_that_are_tried() -> None:
    """`python -m tests.clients --docs docs/clients.md` writes them."""
    text = PAGE.read_text()
    assert f"<!-- clients: examples -->\n\n{page.examples()}\n<!-- end -->" in text
    assert [cells[0] for cells in page.read(text)] == [client.name for client in CLIENTS]


def test_who_is_not_installed_keeps_the_row_from_before() -> None:
    """A run elsewhere replaces the rows of those that it has tried, and no others; without one it says so."""
    document = PAGE.read_text()
    before = page.read(document)
    new = ["curl", "9.9", *["yes"] * (len(HEAD) - 3), "2030-01-02"]
    after = page.read(page.rewritten(document, {"curl": new}))
    assert [cells for cells in after if cells[0] == "curl"] == [new]
    assert [cells for cells in after if cells[0] != "curl"] == [cells for cells in before if cells[0] != "curl"]
    assert page.rewritten(document, {}) == document
    empty = rows("<!-- clients: table -->\n<!-- end -->\n", {})
    assert {cells[1] for cells in empty} == {"not installed"}
    assert {len(cells) for cells in empty} == {len(HEAD)}


def test_a_row_tells_what_failed() -> None:
    """What a client does not offer is a dash, what it did not get through is `no` with the reason, in one line."""
    client = next(client for client in CLIENTS if client.name == "curl")
    outcomes = [Outcome(case, "a | b\nc" if case.mechanism == "LOGIN" else "") for case in expected(client)]
    cells = dict(zip(HEAD, row(client, outcomes, "2030-01-02"), strict=True))
    assert (cells["in clear"], cells["sendmail"], cells["SMTPUTF8"], cells["DSN"]) == ("yes", "–", "yes", "–")
    assert cells["STARTTLS"] == "**no**: LOGIN a \\| b c"
    good = dict(zip(HEAD, row(client, [Outcome(one.case, "") for one in outcomes], "2030-01-02"), strict=True))
    assert good["STARTTLS"] == "LOGIN, PLAIN"
    written = page.table([list(cells.values())])
    assert page.read(f"<!-- clients: table -->\n\n{written}\n<!-- end -->") == [list(cells.values())]
