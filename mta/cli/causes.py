"""`mta explain` over much mail: a summary by cause, or a line of JSON for each delivery, page by page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Final

from mta.cli.options import connect
from mta.cli.queue import tell_missing
from mta.cli.text import age, count, printable, until
from mta.control import exits
from mta.control.causes import CauseRow, Causes
from mta.control.exits import OperatorError
from mta.control.explanation import KINDS, subject_of
from mta.control.protocol import Missing
from mta.queue.filter import FIELDS, Filter, FilterError

SHOWN: Final = 30


def is_filter(text: str) -> bool:
    """Whether it is an expression about mail and no name of one thing. Raises OperatorError when it is a wrong one."""
    try:
        found = Filter.parse(text)
    except FilterError as error:
        first, *rest = text.split(None, 1)[:2] or [""]
        # No path and no domain has an equals sign in its name: a field is misspelled.
        if rest or first.lower() in FIELDS or ("=" in text and subject_of(text)[0] == "name"):
            raise OperatorError(exits.USAGE, f"{text}: {error}") from None
        return False
    plain = text.partition("=")
    is_one = len(found.fields) == 1 and plain[0].lower() in KINDS and not any(mark in plain[2] for mark in ' =<>~"*?')
    return not is_one


def run_over(options: argparse.Namespace, expression: str) -> int:
    """Explain all that the expression means ("": all mail). The exit code."""
    if expression:
        try:
            Filter.parse(expression)
        except FilterError as error:
            raise OperatorError(exits.USAGE, f"{expression}: {error}") from None
    as_lines = options.json and not options.summary
    causes, missing, deliveries = Causes(), [], 0
    with connect(options) as client:
        for page in client.pages(expression, not as_lines):
            deliveries += page.deliveries
            missing += page.missing
            causes.add(page.causes)
            if page.lines:
                sys.stdout.buffer.write(page.lines)
                sys.stdout.buffer.flush()
    if options.json:
        for row in causes.rows:
            print(json.dumps(_for_json(row)))
    else:
        _print(causes, deliveries)
    return _tell(missing)


def _print(causes: Causes, deliveries: int) -> None:
    now_us, rows = time.time_ns() // 1000, causes.rows
    for row in rows[:SHOWN]:
        print(f"{printable(row.kind)}: {printable(row.text, 500)}")
        when = [f"since {age(row.since_us, now_us)}"] if row.since_us else []
        when += [f"next {until(row.until_us, now_us)}"] if row.until_us else []
        print(f"  {', '.join([count(row.deliveries, 'delivery', 'deliveries'), count(row.queues, 'queue'), *when])}")
        if row.remedy:
            print(f"  to change it: {printable(row.remedy, 500)}")
        queue = f" of {printable(row.example_queue)}" if row.example_queue != row.example else ""
        print(f"  for example {printable(row.example)}{queue}\n")
    if len(rows) > SHOWN:
        rest = sum(row.deliveries for row in rows[SHOWN:])
        print(f"and {count(len(rows) - SHOWN, 'more cause')} of {count(rest, 'delivery', 'deliveries')} "
              "(--summary --json shows all)\n")
    print(f"{count(deliveries, 'delivery', 'deliveries')}, {count(len(rows), 'cause')}")


def _for_json(row: CauseRow) -> dict[str, object]:
    fields = dataclasses.asdict(row)
    del fields["first_queue"], fields["last_queue"]
    return fields


def _tell(missing: list[Missing]) -> int:
    return tell_missing(list({one.worker: one for one in missing}.values()))
