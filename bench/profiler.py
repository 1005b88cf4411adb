"""Profiles of one worker while a run goes on. A profiled run's figures are not to be quoted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from bench.processes import program

KINDS = ("py-spy", "perf")
_END_S = 120.0
_TOP = 30
_TOP_LATER = 5


class ProfileError(Exception):
    """The profiler is missing, or did not work."""


class Profiler:
    """A running py-spy or perf on one process."""

    def __init__(self, kind: str, pid: int, output: Path) -> None:
        """Begin; files are named after `output`. Raises ProfileError."""
        self._kind = kind
        self._output = output.with_name(output.name + (".collapsed" if kind == "py-spy" else ".perf"))
        self._process = subprocess.Popen(self._command(pid), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.PIPE, text=True)

    def _command(self, pid: int) -> list[str]:
        if self._kind == "py-spy":
            return [_tool("py-spy"), "record", "--pid", str(pid), "--rate", "250", "--threads", "--format", "raw",
                    "--output", str(self._output)]
        return [_tool("perf"), "record", "-F", "499", "-g", "-p", str(pid), "-o", str(self._output)]

    def stop(self) -> list[str]:
        """End it; the lines of a summary. Raises ProfileError."""
        self._process.send_signal(signal.SIGINT)
        try:
            said = self._process.communicate(timeout=_END_S)[1]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise ProfileError(f"{self._kind} did not end") from None
        if not self._output.exists():
            raise ProfileError(f"{self._kind} wrote nothing: {said.strip()[-300:]}")
        lines = summary(self._output.read_text()) if self._kind == "py-spy" else self._report()
        text = self._output.with_suffix(".txt")
        text.write_text("\n".join(lines) + "\n")
        how = "stacks for speedscope.app or flamegraph.pl" if self._kind == "py-spy" else "for perf report"
        return [f"profile: {self._output} ({how}), {text}", *lines]

    def _report(self) -> list[str]:
        done = subprocess.run([_tool("perf"), "report", "--stdio", "--no-children", "-g", "none", "--percent-limit",
                               "0.7", "-i", str(self._output)], capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if line and not line.startswith("#")][:_TOP]


def summary(stacks: str) -> list[str]:
    """Of each thread the functions with the largest share of its samples, from collapsed stacks of py-spy.

    Time inside system calls counts. A thread that waits for work may count as waiting in the function that does.
    """
    threads: dict[str, list[tuple[list[str], int]]] = {}
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if number.isdecimal() and frames:
            # A frame is "function (file:line)": the line is left out, so that a function is one entry.
            names = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in frames]
            threads.setdefault(thread, []).append((names, int(number)))
    lines: list[str] = []
    for thread, found in sorted(threads.items(), key=lambda item: -sum(count for _, count in item[1])):
        lines += _functions(thread, found, _TOP_LATER if lines else _TOP)
    return lines or ["no samples"]


def _functions(thread: str, stacks: list[tuple[list[str], int]], top: int) -> list[str]:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for frames, count in stacks:
        own[frames[-1]] += count
        for frame in set(frames):
            within[frame] += count
    samples = own.total()
    return [f"{thread}: {samples} samples", "  own %  with callees %",
            *(f"{100 * count / samples:7.1f} {100 * within[frame] / samples:8.1f}  {frame}"
              for frame, count in own.most_common(top))]


def missing(kind: str) -> str | None:
    """Why this profiler cannot be used, or None."""
    try:
        _tool(kind)
    except ProfileError as error:
        return str(error)
    return None


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else program(name)
    if path is None:
        raise ProfileError(f"{name} is not installed" + (" (pip install py-spy)" if name == "py-spy" else ""))
    return path
