"""Try every client that is installed, and write what came of it.

    python -m tests.clients                            the table, to standard output
    python -m tests.clients --docs docs/clients.md     into the page
    python -m tests.clients --only curl Exim           these alone; all others keep their rows

Exit code 1 when a client did not deliver.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from tests.clients.cases import CLIENTS, attempt
from tests.clients.client import ClientError
from tests.clients.page import Outcome, PageError, expected, rewritten, row, rows, table
from tests.clients.world import World


def main(arguments: list[str]) -> int:
    """The exit code."""
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description="Try clients, and write the table.")
    parser.add_argument("--docs", type=Path, help="page to write into")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    chosen = parser.parse_args(arguments)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    tried: dict[str, list[str]] = {}
    failed = False
    with World() as world:
        for client in CLIENTS:
            if client.name not in chosen.only:
                continue
            if not client.version():
                print(f"{client.name}: not installed, its row stays as it was; needs {client.needs}", file=sys.stderr)
                continue
            outcomes = []
            for case in expected(client):
                fault = ""
                try:
                    attempt(world, case)
                except ClientError as error:
                    fault = str(error)
                    failed = True
                print(f"{case}: {fault or 'ok'}", file=sys.stderr)
                outcomes.append(Outcome(case, fault))
            tried[client.name] = row(client, outcomes, date)
    if chosen.docs is None:
        print(table(rows("", tried)), end="")
        return int(failed)
    try:
        chosen.docs.write_text(rewritten(chosen.docs.read_text(), tried))
    except (OSError, PageError) as error:
        print(f"{chosen.docs}: {error}", file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
