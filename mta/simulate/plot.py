"""The course of a simulation as a picture. matplotlib is optional."""

from __future__ import annotations

from typing import Any

from mta.simulate.result import Result


class PlotError(Exception):
    """There is no picture; the text says why."""


def draw(result: Result, path: str) -> None:
    """Write a picture of what was delivered and what waited over time. Raises PlotError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError("no plot: matplotlib is not installed (pip install 'outbound-mta[bench]')") from None
    hours = [row[0] / 3600 for row in result.series]
    figure: Any = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(hours, [row[1] for row in result.series], label="delivered")
    above.set_ylabel("recipients delivered")
    below.stackplot(hours, [row[2] for row in result.series], [row[3] for row in result.series],
                    labels=["due, held by something", "waiting for its retry time"])
    below.set_ylabel("messages in the queue")
    below.set_xlabel("hours")
    below.legend(fontsize=8, loc="upper right")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise PlotError(f"no plot: {error}") from None
