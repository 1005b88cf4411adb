"""Tables and plots from a result of `bench.compare`, and docs/performance.md brought up to date with them.

    python -m bench.figures result.json                                              the tables as text
    python -m bench.figures result.json --plots docs/performance                     PNG files (needs matplotlib)
    python -m bench.figures result.json --plots docs/performance --docs docs/performance.md
    python -m bench.figures sessions.json --docs docs/performance.md --tables doors,sessions,files

In a document everything between `<!-- figures: NAME -->` and `<!-- end -->` is replaced by the table of that name:
`machine`, `goals`, `scenarios`, `costs`, `latency`, `connections`, `queue` of a result of `bench.compare`, `doors`,
`sessions` and `files` of `bench.sessions`, `flooded` and `floods` of `bench.floods`; `plots` stands for the images that
are drawn by the same command. With `--tables` all others stay as they are, else all of the kinds of result that it is:
of these what was not measured says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import goals, ours
from bench.candidates import DIRECT
from bench.floods import floods_table
from bench.report import aligned
from bench.sessions import TLS, added_ms, files_table, sessions_table

Result = Mapping[str, Any]
Table = list[list[str]]

_NOT_MEASURED = "Not measured."
_MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COLOURS = {"ours": "#1b6ca8", "postfix": "#c0392b", "haraka": "#e0a030", "exim": "#7f8c8d", "opensmtpd": "#27ae60"}
_OTHERS_MOST = 0.3
_TLS_CASES = ("kept-1", "through-1", "paced", "kept-20", "through-20")


class FiguresError(Exception):
    """The document or the result is not what it should be."""


# -- tables --------------------------------------------------------------------------------------------------------


def goals_table(result: Result) -> Table:
    """What we want, what there is."""
    rows = [["scenario", "what", "goal", "measured", "reached"]]
    for goal in goals.goals(result):
        unit = f" {goal.unit}" if goal.unit not in ("", "x") else ""
        sign = "≥" if goal.at_least else "≤"
        measured = "" if goal.measured is None else f"{_number(goal.measured)}{unit}"
        word = {None: "not measured", True: "yes", False: "NO"}[goal.holds]
        rows.append([goal.scenario, goal.what, f"{sign} {_number(goal.bound)}{unit}", measured, word])
    return rows


def scenarios_table(result: Result) -> Table:
    """Every scenario and MTA, medians over the runs."""
    rows = [["scenario", "MTA", "recipients/s", "least-most", "CPU ms each", "syncs each", "`250` p50 / p99 ms",
             "largest process MB", "all once"]]
    for line in result.get("summary", ()):
        if line["mta"] == DIRECT:
            continue
        syncs = line["syncs_per_message"]
        spread = f"{line['rate_least']:,.0f}-{line['rate_most']:,.0f}"
        rows.append([
            line["scenario"], line["mta"], f"{line['rate']:,.0f}", spread, f"{line['cpu_ms']:.3f}",
            "" if syncs is None else f"{syncs:.2f}", f"{line['ack_p50_ms']:.1f} / {line['ack_p99_ms']:.1f}",
            f"{line['peak'] / 1e6:.0f}", "yes" if line["arrived_once"] else "NO",
        ])
    return rows if len(rows) > 1 else []


def latency_table(result: Result) -> Table:
    """L1."""
    groups: dict[tuple[float, str], list[Result]] = {}
    for run in result.get("latency") or ():
        groups.setdefault((run["sync_delay_ms"], run["mta"]), []).append(run)
    rows = [["syncs", "MTA", "`250` p50 ms", "p99 ms", "one fdatasync ms", "times", "least-most"]]
    for (delay_ms, mta), runs in groups.items():
        ratios = sorted(run["ratio"] for run in runs)
        rows.append([f"{delay_ms:g} ms longer" if delay_ms else "as they are", mta,
                     *(f"{_median([run[name] for run in runs]):.3f}"
                       for name in ("dot_p50_ms", "dot_p99_ms", "sync_p50_ms")),
                     f"{_median(ratios):.2f}", f"{ratios[0]:.2f}-{ratios[-1]:.2f}"])
    return rows if len(rows) > 1 else []


def connections_table(result: Result) -> Table:
    """S10."""
    found = result.get("connections")
    if not found or not found["open_when_measured"]:
        return []
    return [
        ["open at once", "own memory before", "with all open", "each", "event loop late p99", "at most"],
        [f"{found['opened']:,}", f"{found['resting_bytes'] / 1e6:.0f} MB", f"{found['open_bytes'] / 1e6:.0f} MB",
         f"{found['bytes_each'] / 1000:.1f} KB", f"{found['lag_p99_ms']:.1f} ms", f"{found['lag_max_ms']:.0f} ms"],
    ]


def queue_table(result: Result) -> Table:
    """S7."""
    rows = [["queued", "domains", "ready s", "after kill -9 s", "`mta queue` s", "own MB at rest", "live recipients/s",
             "CPU ms each", "least-most", "own MB"]]
    for row in result.get("rows") or ():
        lives = row["lives"]
        costs = [run["cpu_ms"] for run in lives]
        rows.append([
            f"{row['queued']:,}", f"{row['domains']:,}" if row["queued"] else "", f"{row['start_s']:.2f}",
            f"{row['recovery_s']:.2f}", f"{row['listing_s']:.2f}", f"{row['resting_bytes'] / 1e6:.0f}",
            *([f"{_median([run['rate'] for run in lives]):,.0f}", f"{_median(costs):.3f}",
               f"{min(costs):.3f}-{max(costs):.3f}", f"{max(run['peak_anonymous'] for run in lives) / 1e6:.0f}"]
              if lives else [""] * 4),
        ])
    return rows if len(rows) > 1 else []


def costs_table(result: Result) -> Table:
    """What costs what: differences between scenarios, so as good as those are."""
    mine = {line["scenario"]: line["cpu_ms"] for line in result.get("summary", ()) if line["mta"] == ours.NAME}
    names = (result.get("dns") or {}).get("cold_cpu_us", 0.0) / 1000
    rows = [["what", "CPU ms", "from"]]

    def add(what: str, how: str, needed: Sequence[str], cost: Callable[[], float]) -> None:
        if all(name in mine for name in needed):
            rows.append([what, f"{cost():.3f}", how])

    add("accept a message of 5 KB, make it durable, keep it", "S6", ["S6"], lambda: mine["S6"])
    add("deliver it at once and settle it", "S1 - S6", ["S1", "S6"], lambda: mine["S1"] - mine["S6"])
    add("50 domains instead of one", "S2 - S1", ["S1", "S2"], lambda: mine["S2"] - mine["S1"])
    add("95 KB of content more, in and out", "S3 - S2", ["S2", "S3"], lambda: mine["S3"] - mine["S2"])
    add("each recipient of a message to 1,000", "S4", ["S4"], lambda: mine["S4"])
    if names:
        rows.append(["names of a domain that is in no cache", f"{names:.3f}", "`bench.dns`"])
        add("a domain and a connection for this message alone", "S9 - S2 - names", ["S2", "S9"],
            lambda: mine["S9"] - mine["S2"] - names)
    return rows if len(rows) > 1 else []


def machine_lines(result: Result) -> list[str]:
    """Where, when and by what command it was measured, and what is to be known when reading it."""
    machine = result.get("machine")
    if not machine:
        return []
    versions = ", ".join(f"{name} {text}" for name, text in result["versions"].items())
    where = (
        f"{machine['cores']} x {machine['processor']}, {machine['memory'] / 2**30:.0f} GiB, Linux {machine['kernel']}, "
        f"CPython {machine['python']}; spool on {machine['file_system']}, where appending 5 KB with `fdatasync` took "
        f"{machine['sync_ms']:.2f} ms. {result['time'][:10]}. {versions}; load by {result['load']}."
    )
    lines = [where]
    if result.get("scale", 1.0) != 1.0:
        lines.append(f"Only {result['scale']:g} of the messages of each scenario: a rehearsal.")
    everything = [*result.get("runs", ()), *(run for row in result.get("rows") or () for run in row["lives"])]
    busy = sum(run["others"] > _OTHERS_MOST for run in everything)
    if busy:
        lines.append(f"**The machine was not idle**: in {busy} of {len(everything)} runs others used more than "
                     f"{_OTHERS_MOST:g} of its cores.")
    lines += [f"Not compared: {name}: {reason}." for name, reason in result.get("skipped", {}).items()]
    names = result.get("dns")
    if names:
        lines.append(f"S9's names alone, asked for by a worker's resolver without any mail: "
                     f"{names['cold_cpu_us'] / 1000:.3f} ms CPU for each domain that is in no cache, and "
                     f"{names['questions'] / names['domains']:.0f} questions.")
    return lines


SECTIONS: dict[str, tuple[str, Callable[[Result], Table]]] = {
    "goals": ("Goals", goals_table),
    "scenarios": ("Scenarios", scenarios_table),
    "costs": ("What costs what", costs_table),
    "latency": ("One message at a time (L1)", latency_table),
    "connections": ("Open connections (S10)", connections_table),
    "queue": ("A long queue (S7)", queue_table),
    "sessions": ("Sessions, in clear and in TLS", sessions_table),
    "files": ("Files", files_table),
    "floods": ("Crowds and floods", floods_table),
}
_KINDS = {
    "summary": ("machine", "goals", "scenarios", "costs", "latency", "connections", "queue", "plots"),
    "doors": ("doors", "sessions", "files"),
    "flooded": ("flooded", "floods"),
}
"""What tells that a result is of a kind, and the sections of that kind."""
_NAMES = frozenset(name for names in _KINDS.values() for name in names)
_PARTS_OF_COMPARE = ("summary", "rows", "latency", "connections")


def sections_of(result: Result) -> list[str]:
    """The sections that a result is about. Raises FiguresError when it is about none."""
    found = [name for part, names in _KINDS.items() if part in result or (
        part == "summary" and any(name in result for name in _PARTS_OF_COMPARE)) for name in names]
    if not found:
        raise FiguresError("no result of bench.compare, bench.sessions or bench.floods")
    return found


def conditions(found: Mapping[str, Any]) -> str:
    """Where and when, of one part of a result."""
    machine = found["machine"]
    busy = "" if machine["load"] <= _OTHERS_MOST * machine["cores"] else \
        f" **The machine was busy** before: load {machine['load']:.1f}."
    return (f"{found['time'][:10]}, ours {found['version']}, workers: {found['workers']}, {machine['cores']} x "
            f"{machine['processor']}, `fdatasync` {machine['sync_ms']:.2f} ms.{busy}\n")


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") if value < 1 else f"{value:.2f}".rstrip("0").rstrip(".")


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def text(result: Result) -> list[str]:
    """All tables for a terminal."""
    lines = [*machine_lines(result), ""]
    for name in sections_of(result):
        if name not in SECTIONS:
            continue
        title, make = SECTIONS[name]
        rows = make(result)
        lines += [f"{title}:", *(aligned(rows, left=2) if rows else [_NOT_MEASURED]), ""]
    return lines


def _tls_line(result: Result) -> str:
    """What TLS costs, beside what we want."""
    added = [(case, added_ms(result.get("sessions", ()), case, TLS)) for case in _TLS_CASES]
    said = ", ".join(f"{ms:.3f} ms (`{case}`)" for case, ms in added if ms is not None)
    return f"\nTLS adds to a message, CPU: {said}; wanted: at most 0.06 ms.\n" if said else ""


def section(result: Result, name: str) -> str:
    """One section as Markdown. Raises FiguresError for a name that there is not."""
    if name == "machine":
        lines = machine_lines(result)
        if not lines:
            return _NOT_MEASURED + "\n"
        commands = "".join(f"    {command}\n" for command in result["commands"])
        return "\n\n".join(lines) + f"\n\n{commands}"
    if name in ("doors", "flooded"):
        if name not in result:
            return _NOT_MEASURED + "\n"
        return conditions(result[name]) + (_tls_line(result) if name == "doors" else "")
    if name not in SECTIONS:
        raise FiguresError(f"no table {name!r}: there are machine, doors, flooded, {', '.join(SECTIONS)}")
    rows = SECTIONS[name][1](result)
    if not rows:
        return _NOT_MEASURED + "\n"
    head, *body = rows
    written = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in written)


def markdown(result: Result) -> str:
    """All of it as a document."""
    parts = [f"# Measured\n\n{section(result, 'machine')}"]
    parts += [f"## {title}\n\n{section(result, name)}" for name, (title, _) in SECTIONS.items()
              if name in sections_of(result)]
    return "\n".join(parts)


def rewritten(document: str, result: Result, images: Sequence[str] = (), tables: Sequence[str] = ()) -> str:
    """`document` with its `tables` replaced, all that the result is about without any, and `images`, named relative to
    it. Raises FiguresError without a place."""
    wanted = tables or sections_of(result)

    def new_text(found: re.Match[str]) -> str:
        if found[2] not in wanted and found[2] in _NAMES:
            return found[0]
        if found[2] != "plots":
            text = section(result, found[2])
        else:
            text = "".join(f"![{Path(image).stem}]({image})\n" for image in images) if images else "Not drawn.\n"
        return f"{found[1]}\n{text}\n{found[3]}"

    new, count = _MARK.subn(new_text, document)
    if not count:
        raise FiguresError("there is no <!-- figures: NAME --> in it")
    return new


# -- plots -----------------------------------------------------------------------------------------------------------


def plots(result: Result, directory: Path) -> list[Path]:
    """Draw what was measured into `directory`; the files. Raises FiguresError when nothing can be drawn."""
    try:
        import matplotlib
    except ImportError:
        raise FiguresError("no plots: matplotlib is not installed (pip install 'outbound-mta[bench]')") from None
    matplotlib.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    if result.get("summary"):
        drawn.append(_bars(result, "rate", "recipients per second", directory / "rates.png"))
        drawn.append(_bars(result, "cpu_ms", "CPU ms per recipient", directory / "cpu.png"))
    if any(row["lives"] for row in result.get("rows") or ()):
        drawn.append(_flat(result, directory / "queue.png"))
    return drawn


def draw(result: Result, directory: Path) -> list[Path]:
    """Draw the plots and say so, or why not; the files."""
    try:
        drawn = plots(result, directory)
    except FiguresError as error:
        print(error)
        return []
    print(*(f"plot: {path}" for path in drawn), sep="\n")
    return drawn


def _bars(result: Result, value: str, title: str, path: Path) -> Path:
    """Every scenario and MTA, on a logarithmic scale."""
    from matplotlib.figure import Figure

    lines = {(line["scenario"], line["mta"]): line for line in result["summary"] if line["mta"] != DIRECT}
    scenarios = list(dict.fromkeys(scenario for scenario, _ in lines))
    names = [name for name in _COLOURS if any(mta == name for _, mta in lines)]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        found = [(place, lines[scenario, name]) for place, scenario in enumerate(scenarios)
                 if (scenario, name) in lines and lines[scenario, name][value] > 0]
        at = [place + (number - (len(names) - 1) / 2) * width for place, _ in found]
        heights = [line[value] for _, line in found]
        errors = None
        if value == "rate":
            errors = [[line["rate"] - line["rate_least"] for _, line in found],
                      [line["rate_most"] - line["rate"] for _, line in found]]
        bars = axes.bar(at, heights, width, yerr=errors, label=name, color=_COLOURS[name], ecolor="#444444")
        axes.bar_label(bars, [f"{height:,.0f}" if height >= 10 else f"{height:.2g}" for height in heights], fontsize=6,
                       padding=2)
    axes.set_yscale("log")
    axes.set_xticks(range(len(scenarios)), scenarios)
    axes.set_title(f"{title} (logarithmic; median{', least and most' if value == 'rate' else ''})", fontsize=10)
    axes.legend(fontsize=8, ncols=len(names))
    axes.margins(y=0.15)
    figure.savefig(path, dpi=120)
    return path


def _flat(result: Result, path: Path) -> Path:
    """Cost and rate of live mail against the length of the queue, one line for each number of domains."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["lives"]]
    queued = sorted({row["queued"] for row in rows})
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, value, title in zip(figure.subplots(1, 2), ("cpu_ms", "rate"),
                                  ("CPU ms per live message", "live messages per second"), strict=True):
        for domains in sorted({row["domains"] for row in rows if row["queued"]}):
            # The empty queue has no domains: all lines begin there.
            line = [row for row in rows if row["domains"] == domains or not row["queued"]]
            line.sort(key=lambda row: row["queued"])
            values = [[run[value] for run in row["lives"]] for row in line]
            middle = [_median(found) for found in values]
            name = "1 domain" if domains == 1 else f"{domains:,} domains"
            axes.errorbar(
                [queued.index(row["queued"]) for row in line], middle, label=name, marker="o",
                capsize=3, yerr=[[at - min(found) for at, found in zip(middle, values, strict=True)],
                                 [max(found) - at for at, found in zip(middle, values, strict=True)]])
        axes.set_ylim(0, 1.25 * max(run[value] for row in rows for run in row["lives"]))
        axes.set_xticks(range(len(queued)), [f"{number:,}" for number in queued])
        axes.set_xlabel("messages that wait for other domains")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    return path


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.figures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what bench.compare --json wrote")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw plots into this directory")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="rewrite the tables in this document")
    parser.add_argument("--tables", type=lambda text: text.split(","), default=[], metavar="NAME[,NAME...]",
                        help="these tables of the document only")
    return parser


def main(words: list[str] | None = None) -> int:
    """Do it; 0, or 2 for a result or document that cannot be used."""
    options = arguments().parse_args(words)
    try:
        result = json.loads(options.result.read_text())
        if not isinstance(result, dict):
            raise FiguresError(f"{options.result} is no result")
        sections_of(result)
        print(*text(result), sep="\n")
        if options.markdown is not None:
            options.markdown.write_text(markdown(result))
        drawn = draw(result, options.plots) if options.plots is not None else []
        if options.docs is not None:
            images = [os.path.relpath(path, options.docs.parent) for path in drawn]
            options.docs.write_text(rewritten(options.docs.read_text(), result, images, options.tables))
    except (OSError, ValueError, FiguresError) as error:
        print(f"bench.figures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
