"""The receivers of the demo as a table for docs/demo.md: `python -m mta.demo.reference` prints it."""

from __future__ import annotations

from mta.demo.internet import KINDS


def markdown() -> str:
    """One row for each kind."""
    rows = [f"| {kind.title} | {kind.domains} | {kind.share:.1%} | {kind.story} |" for kind in KINDS]
    return "\n".join(["| receivers | domains | share of the mail | what they do, and what the MTA makes of it |",
                      "|---|--:|--:|---|", *rows])


if __name__ == "__main__":
    print(markdown())
