"""The tables: one line per scenario and MTA, medians over the runs, and the ratios between the MTAs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.candidates import DIRECT
from bench.measure import Run

_MB = 1e6


@dataclass(frozen=True, slots=True)
class Line:
    """Medians over the runs of one MTA in one scenario, under the names of `Run`."""

    scenario: str
    mta: str
    runs: int
    rate: float
    rate_least: float
    rate_most: float
    cpu_ms: float
    syncs_per_message: float | None
    ack_p50_ms: float
    ack_p99_ms: float
    dot_p50_ms: float | None
    dot_p99_ms: float | None
    largest: str
    peak: float
    peak_anonymous: float
    together: float
    load_cpu_ms: float
    dns_queries: float
    per_round_trip: float | None
    others: float
    """Cores that others used in the worst of the runs."""
    arrived_once: bool
    """Whether every recipient of every run arrived exactly once."""


def summarize(runs: Sequence[Run]) -> list[Line]:
    """One line per scenario and MTA, in the order of the runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.scenario, run.mta), []).append(run)
    return [_line(group) for group in groups.values()]


def _line(runs: list[Run]) -> Line:
    def median(value: Callable[[Run], float]) -> float:
        return statistics.median(value(run) for run in runs)

    return Line(
        scenario=runs[0].scenario, mta=runs[0].mta, runs=len(runs),
        rate=median(lambda run: run.rate), rate_least=min(run.rate for run in runs),
        rate_most=max(run.rate for run in runs), cpu_ms=median(lambda run: run.cpu_ms),
        syncs_per_message=_median(run.syncs_per_message for run in runs),
        ack_p50_ms=median(lambda run: run.ack_p50_ms), ack_p99_ms=median(lambda run: run.ack_p99_ms),
        dot_p50_ms=_median(run.dot_p50_ms for run in runs), dot_p99_ms=_median(run.dot_p99_ms for run in runs),
        largest=max(runs, key=lambda run: run.peak).largest, peak=max(run.peak for run in runs),
        peak_anonymous=max(run.peak_anonymous for run in runs), together=max(run.together for run in runs),
        load_cpu_ms=median(lambda run: run.load_cpu_ms), dns_queries=median(lambda run: run.dns_queries),
        per_round_trip=_median(run.per_round_trip for run in runs),
        others=max(run.others for run in runs),
        arrived_once=not any(run.problems for run in runs),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _megabytes(size: float) -> str:
    return f"{size / _MB:.0f}" if size else ""


_COLUMNS: tuple[tuple[str, Callable[[Line], str]], ...] = (
    ("scenario", lambda line: line.scenario),
    ("MTA", lambda line: line.mta),
    ("runs", lambda line: str(line.runs)),
    ("rcpt/s", lambda line: f"{line.rate:,.0f}"),
    ("least-most", lambda line: f"{line.rate_least:,.0f}-{line.rate_most:,.0f}"),
    ("CPU ms", lambda line: "" if line.mta == DIRECT else f"{line.cpu_ms:.3f}"),
    ("syncs", lambda line: "" if line.syncs_per_message is None else f"{line.syncs_per_message:.3f}"),
    ("250 p50", lambda line: f"{line.ack_p50_ms:.1f}"),
    ("p99 ms", lambda line: f"{line.ack_p99_ms:.1f}"),
    ("peak MB", lambda line: _megabytes(line.peak)),
    ("own MB", lambda line: _megabytes(line.peak_anonymous)),
    ("all MB", lambda line: _megabytes(line.together)),
    ("load ms", lambda line: f"{line.load_cpu_ms:.3f}"),
    ("once", lambda line: "yes" if line.arrived_once else "NO"),
)


def table(lines: Sequence[Line]) -> list[str]:
    """The table as text."""
    rows = [[title for title, _ in _COLUMNS]]
    rows += [[cell(line) for _, cell in _COLUMNS] for line in lines]
    return aligned(rows, left=2)


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of equal length in columns, the first `left` of them to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) if column < left else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def comparisons(lines: Sequence[Line], ours: str) -> list[str]:
    """Ours against each other MTA of the same scenario, and what a scenario asks for besides."""
    found = []
    for line in lines:
        if line.per_round_trip is not None:
            found.append(f"{line.scenario}: {line.mta} sends {line.per_round_trip:.2f} messages per round trip and "
                         "connection")
        mine = next((other for other in lines if other.scenario == line.scenario and other.mta == ours), None)
        if mine is None or line.mta in (ours, DIRECT) or not line.rate or not line.cpu_ms:
            continue
        found.append(f"{line.scenario}: {ours} moves {mine.rate / line.rate:.2f} times what {line.mta} does, "
                     f"with {mine.cpu_ms / line.cpu_ms:.3f} of its CPU time per recipient")
    return found


def progress(run: Run, runs: int) -> str:
    """One run, as it ends."""
    text = (f"{run.scenario} {run.mta} {run.number}/{runs}: {run.rate:,.0f}/s, {run.cpu_ms:.3f} ms CPU, "
            f"{run.arrived or run.queued} of {run.expected} recipients, {run.duplicates} twice")
    return "\n  ".join([text, *run.problems, *run.notes])
