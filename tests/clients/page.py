"""docs/clients.md: the table of what was tried, and what to set in each client.

Between `<!-- clients: table -->` and `<!-- end -->` stands the table, and likewise `examples`. A client that is not
installed where the table is made keeps the row that it had, with the date of that; who had none is `not installed`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.cases import CLIENTS, Case, cases
from tests.clients.client import FEATURES, WAYS, Call, Client, Example

PAGE: Final = Path(__file__).parents[2] / "docs" / "clients.md"
HEAD: Final = ["client", "version", *WAYS, *FEATURES, "tried"]
_NOT_INSTALLED: Final = "not installed"
_MARK: Final = re.compile(r"(<!-- clients: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LANGUAGES: Final = {"py": "python", "js": "js", "php": "php", "rb": "ruby", "pl": "perl", "go": "go", "java": "java"}


class PageError(Exception):
    """The document is not what it should be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case; empty: it is as it should be."""

    case: Case
    fault: str


def row(client: Client, outcomes: Sequence[Outcome], date: str) -> list[str]:
    """The row of a client that was tried."""
    def cell(found: Sequence[Outcome], good: str) -> str:
        faults = [f"{one.case.mechanism or ''} {' '.join(one.fault.split())[:200]}".strip().replace("|", "\\|")
                  for one in found if one.fault]
        return f"**no**: {'; '.join(faults)}" if faults else good if found else "–"

    cells = [client.name, client.version()]
    for way in WAYS:
        found = [one for one in outcomes if one.case.way == way and not one.case.feature]
        logins = ", ".join(one.case.mechanism for one in found if one.case.mechanism)
        cells.append(cell(found, logins or "yes"))
    cells += [cell([one for one in outcomes if one.case.feature == feature], "yes") for feature in FEATURES]
    return [*cells, date]


def rows(document: str, tried: Mapping[str, list[str]]) -> list[list[str]]:
    """All rows: of who was tried now, else the one that the document has."""
    before = {cells[0]: cells for cells in read(document)}
    nothing = [_NOT_INSTALLED, *[""] * (len(HEAD) - 2)]
    return [tried.get(client.name) or before.get(client.name) or [client.name, *nothing] for client in CLIENTS]


def read(document: str) -> list[list[str]]:
    """The rows of the table in a document; none where it has other columns."""
    found = next((match[0] for match in _MARK.finditer(document) if match[2] == "table"), "")
    lines = [re.split(r" ?(?<!\\)\| ?", line.strip("| ")) for line in found.splitlines() if line.startswith("|")]
    return lines[2:] if lines and lines[0] == HEAD else []


def table(found: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [HEAD, ["---"] * len(HEAD), *found])


def call_of(client: Client) -> Call:
    """What the example of a client shows: submission with a login where it can do that."""
    way = "STARTTLS" if "STARTTLS" in client.ways else client.ways[0]
    return Call(way, "mx.example.net", 587, "/run/mta/smtp", "/usr/sbin/sendmail",
                "/etc/ssl/certs/ca-certificates.crt", "bob@example.org", "news@acme.example")


def examples() -> str:
    """What to set, for each client."""
    return "\n".join(f"### {client.name}\n\n{_shown(client.example(call_of(client)))}" for client in CLIENTS)


def _shown(example: Example) -> str:
    parts = []
    for name, content in example.files.items():
        language = _LANGUAGES.get(name.rpartition(".")[2], "")
        parts.append(f"`{name}`:\n\n```{language}\n{content}```\n")
    if example.command:
        words = ["python3" if word == sys.executable else word for word in example.command]
        command = shlex.join(words) + (f" < {example.reads}" if example.reads else "")
        parts.append(f"```sh\n{command}\n```\n")
    return "\n".join(parts)


def rewritten(document: str, tried: Mapping[str, list[str]]) -> str:
    """The document with new tables. Raises PageError where it has no place for them."""
    texts = {"table": table(rows(document, tried)), "examples": examples()}
    found = [match[2] for match in _MARK.finditer(document)]
    if sorted(found) != sorted(texts):
        raise PageError(f"it has the marks {found}, not {sorted(texts)}")
    return _MARK.sub(lambda match: f"{match[1]}\n{texts[match[2]]}\n{match[3]}", document)


def expected(client: Client) -> list[Case]:
    """The cases of a client, in the order of their mechanisms, as each change of the offer is a reload."""
    return sorted(cases(client), key=lambda case: case.mechanism or "")
