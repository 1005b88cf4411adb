"""Table and plot from results of `bench.hidden`.

    python -m bench.hiddenplot ours.json postfix.json --plot docs/shaping/hidden.png     (needs matplotlib)

The table is Markdown. In the plot there is a row for each result and receiver: what it took of messages (where its
limit is one of connections: how many were open), its limit as a line, and what it refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.hidden import Phase

Result = Mapping[str, Any]

_OVER_S = 30.0
"""Rates are drawn as means over so long; at five messages a minute ten seconds hold one or none."""
_TAKEN, _LIMIT, _REFUSED = "#2563eb", "#444444", "#dc2626"


def name_of(result: Result) -> str:
    """Who it was, for people."""
    if result["mta"] != "ours":
        return f"{str(result['mta']).capitalize()} {result['version']}, its defaults"
    workers = int(result["workers"])
    return f"ours, {workers} worker{'s' if workers > 1 else ''}"


def table(results: Sequence[Result]) -> str:
    """A line for each phase of each receiver."""
    head = ["", "it takes", "refused until 2 min", "then sent, of what was possible", "refused"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        lines += [[name_of(result), phase["phase"], *_cells(phase)] for phase in result["phases"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cells(phase: Mapping[str, Any]) -> list[str]:
    if "taken" not in phase:
        return ["-"] * 3
    used = f"{100 * phase['used']:.1f} %" if "used" in phase else f"{phase['taken']:,} messages"
    refused = f"{100 * phase['refused_share']:.1f} % ({phase['refused']:,} of {phase['taken'] + phase['refused']:,})"
    return [f"{phase['learning_refused']:,}", used, refused]


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw it. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    rows = [(result, name) for result in results for name in result["readings"]]
    figure = Figure(figsize=(10, 1 + 2.1 * len(rows)), layout="constrained")
    for axes, (result, name) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        of_it = f", {name.partition('.')[0]}" if len(result["readings"]) > 1 else ""
        axes.set_title(f"{name_of(result)}{of_it}", fontsize=9, loc="left")
        _course(axes, result["readings"][name])
    axes.set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _course(axes: Any, readings: Sequence[Mapping[str, Any]]) -> None:
    """One receiver over time."""
    minutes, taken, refused, limits = [], [], [], []
    for position, now in enumerate(readings):
        before = next((one for one in reversed(readings[:position]) if now["at_s"] - one["at_s"] >= _OVER_S - 1
                       and one["phase"] == now["phase"]), None)
        earlier = readings[max(position - 1, 0)]
        phase = Phase.parse(now["phase"])
        minutes.append(now["at_s"] / 60)
        limits.append(phase.possible * (60 if phase.rate else 1) or None)
        refused.append(now["refused"] - earlier["refused"])
        if not phase.rate:
            taken.append(now["open"])
        elif before is None:
            taken.append(None)
        else:
            taken.append(60 * (now["taken"] - before["taken"]) / (now["at_s"] - before["at_s"]))
    axes.plot(minutes, limits, color=_LIMIT, linewidth=1, linestyle="--", drawstyle="steps-post", label="its limit")
    axes.plot(minutes, taken, color=_TAKEN, linewidth=1.4, label="messages a minute, or connections")
    axes.bar(minutes, refused, width=0.15, color=_REFUSED, label="refused, in ten seconds")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 3000)
    axes.set_yticks([1, 5, 20, 200, 2000], ["1", "5", "20", "200", "2000"])
    axes.grid(axis="y", linewidth=0.3)
    last = None
    for now in readings:
        if now["phase"] != last:
            last = now["phase"]
            axes.axvline(now["at_s"] / 60, color="#bbbbbb", linewidth=0.6)
            axes.text(now["at_s"] / 60 + 0.05, 1900, last, fontsize=7, va="top")
    axes.legend(fontsize=6, loc="lower right")


def main(words: list[str] | None = None) -> int:
    """Do it."""
    parser = argparse.ArgumentParser(prog="bench.hiddenplot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="what bench.hidden --json wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there")
    options = parser.parse_args(words)
    results = [json.loads(path.read_text()) for path in options.results]
    print(table(results), end="")
    if options.plot is not None:
        plot(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
