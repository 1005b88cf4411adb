"""How often the MTA made the disk sync, counted in the kernel by perf(1).

On ext4, xfs and btrfs the file system's own tracepoint is counted: besides fsync, fdatasync and msync it sees each
write to a file opened with O_DSYNC, which is a sync as well. Elsewhere the three system calls are counted.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from bench.processes import Account, program

_FILE_SYSTEM_EVENTS = {
    "ext4": "ext4:ext4_sync_file_enter",
    "xfs": "xfs:xfs_file_fsync",
    "btrfs": "btrfs:btrfs_sync_file",
}
_SYSTEM_CALLS = ("syscalls:sys_enter_fsync", "syscalls:sys_enter_fdatasync", "syscalls:sys_enter_msync")
_WAIT_S = 10.0


class NotMeasuredError(Exception):
    """Syncs cannot be counted here; the text says why."""


class SyncCounter:
    """Counts from its making to `stop()`."""

    def __init__(self, processes: Account, file_system: str, output: Path) -> None:
        """Begin. Raises NotMeasuredError."""
        perf = program("perf")
        if perf is None:
            raise NotMeasuredError("perf is not installed")
        event = _FILE_SYSTEM_EVENTS.get(file_system)
        events = (event,) if event else _SYSTEM_CALLS
        self._output = output
        perf_reads, we_write = os.pipe()
        we_read, perf_writes = os.pipe()
        self._process = subprocess.Popen(
            [perf, "stat", "-x", ";", "-D", "-1", "--control", f"fd:{perf_reads},{perf_writes}", "-o", str(output),
             "-e", ",".join(events), *processes.perf_target(len(events))],
            pass_fds=(perf_reads, perf_writes), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        os.close(perf_reads)
        os.close(perf_writes)
        with os.fdopen(we_write, "wb", buffering=0) as commands, os.fdopen(we_read, "rb", buffering=0) as answers:
            try:
                commands.write(b"enable\n")
                counting = bool(answers.read(4))
            except BrokenPipeError:
                counting = False
        if not counting:
            self._process.kill()
            said = " ".join(self._process.communicate()[1].split())
            why = "no permission for tracepoints, root has it" if "permission" in said.lower() else said[:200]
            raise NotMeasuredError(f"perf does not count: {why}")

    def stop(self) -> int:
        """The syncs. Raises NotMeasuredError."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise NotMeasuredError("perf did not end") from None
        count = 0
        lines = [line for line in self._output.read_text().splitlines() if line and not line.startswith("#")]
        for line in lines:
            value = line.split(";")[0]
            if not value.isdecimal():
                raise NotMeasuredError(f"perf counted nothing: {line}")
            count += int(value)
        if not lines:
            raise NotMeasuredError("perf wrote nothing")
        return count
