"""What we want to reach in each scenario, and whether a result does.

A result is what `bench.compare` writes. Rates are compared within one sitting only: the machine decides them more
than the program does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import haraka, ours, postfix

Result = Mapping[str, Any]

_RIVALS = (postfix.NAME, haraka.NAME)
_FLAT = 1.3
"""Times the cost with an empty queue: less is noise."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One number that is wanted."""

    scenario: str
    what: str
    bound: float
    at_least: bool
    """Whether more is better."""
    unit: str
    measured: float | None
    """None: not measured."""

    @property
    def holds(self) -> bool | None:
        """Whether it is reached; None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def goals(result: Result) -> list[Goal]:
    """All of them, in the order of the scenarios."""
    lines = {(line["scenario"], line["mta"]): line for line in result.get("summary", ())}
    found: list[Goal] = []
    for scenario, against_postfix, against_haraka, cpu_ms in (("S1", 6.0, 4.5, 0.22), ("S2", 6.0, 4.5, 0.25)):
        found += [_rate(lines, scenario, (postfix.NAME,), against_postfix),
                  _rate(lines, scenario, (haraka.NAME,), against_haraka), _cpu(lines, scenario, cpu_ms),
                  Goal(scenario, "syncs per message", 0.1, False, "",
                       _value(lines, scenario, "syncs_per_message"))]
    for scenario, times, bound in (("S3", 3.0, 0.6), ("S4", 3.0, 0.06), ("S5", 4.5, None), ("S6", 7.0, 0.15)):
        found.append(_rate(lines, scenario, _RIVALS, times))
        if bound is not None:
            found.append(_cpu(lines, scenario, bound))
    found += _queue(result.get("rows") or ())
    found.append(Goal("S8", "messages per round trip and connection", 0.9, True, "",
                      _value(lines, "S8", "per_round_trip")))
    found.append(_cpu(lines, "S9", 1.0))
    found += _connections(result.get("connections"))
    found += _latency(result.get("latency") or ())
    return found


def _value(lines: Mapping[tuple[str, str], Result], scenario: str, name: str) -> float | None:
    line = lines.get((scenario, ours.NAME))
    return None if line is None else line[name]


def _cpu(lines: Mapping[tuple[str, str], Result], scenario: str, bound: float) -> Goal:
    return Goal(scenario, "CPU per recipient", bound, False, "ms", _value(lines, scenario, "cpu_ms"))


def _rate(lines: Mapping[tuple[str, str], Result], scenario: str, rivals: Iterable[str], times: float) -> Goal:
    """Our rate for one of the fastest of the rivals; not measured unless all of them were."""
    rates = [lines[scenario, rival]["rate"] if (scenario, rival) in lines else 0.0 for rival in rivals]
    mine = _value(lines, scenario, "rate")
    measured = mine / max(rates) if mine is not None and all(rates) else None
    names = " and ".join(rival.capitalize() for rival in rivals)
    return Goal(scenario, f"rate, times that of {'the better of ' if len(rates) > 1 else ''}{names}", times, True, "x",
                measured)


def _queue(rows: Iterable[Result]) -> list[Goal]:
    million = [row for row in rows if row["queued"] >= 1_000_000]
    lives = [row for row in rows if row["lives"]]

    def worst(value: str, rows: list[Result]) -> float | None:
        return max((row[value] for row in rows), default=None)

    memory = [max([row["resting_bytes"], *(run["peak_anonymous"] for run in row["lives"])]) for row in million]
    empty = [median_cpu(row) for row in lives if not row["queued"]]
    full = [median_cpu(row) for row in lives if row["queued"]]
    return [
        Goal("S7", "1,000,000 queued: start to ready", 2.0, False, "s", worst("start_s", million)),
        Goal("S7", "1,000,000 queued: `mta queue`", 1.0, False, "s", worst("listing_s", million)),
        Goal("S7", "1,000,000 queued: own memory of a worker", 150.0, False, "MB",
             max(memory) / 1e6 if memory else None),
        Goal("S7", "CPU per message at any length, times that with an empty queue", _FLAT, False, "x",
             max(full) / empty[0] if full and empty else None),
    ]


def median_cpu(row: Result) -> float:
    """Median CPU time of a live message in ms over the rounds of a row."""
    values = sorted(run["cpu_ms"] for run in row["lives"])
    middle = len(values) // 2
    return float(values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2)


def _connections(found: Result | None) -> list[Goal]:
    opened = each = late = None
    if found and found["open_when_measured"]:
        opened, each, late = found["opened"], found["bytes_each"] / 1000, found["lag_p99_ms"]
    return [
        Goal("S10", "open connections in one worker", 10_000, True, "", opened),
        Goal("S10", "own memory for each", 40.0, False, "KB", each),
        Goal("S10", "event loop late, p99", 50.0, False, "ms", late),
    ]


def _latency(runs: Iterable[Result]) -> list[Goal]:
    found = []
    mine = [run for run in runs if run["mta"] == ours.NAME and run["ratio"]]
    for delay_ms in sorted({run["sync_delay_ms"] for run in mine} | {0.0}):
        ratios = sorted(run["ratio"] for run in mine if run["sync_delay_ms"] == delay_ms)
        slow = f", syncs {delay_ms:g} ms longer" if delay_ms else ""
        found.append(Goal("L1", f"one at a time: final dot to 250, times one fdatasync{slow}", 2.0, False, "x",
                          ratios[len(ratios) // 2] if ratios else None))
    return found
