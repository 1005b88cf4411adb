"""Exit codes of every command and process, by name.

The numbers are those of sysexits.h where one fits, so that scripts and service managers know them. The unit in
`systemd/` does not restart after those that only an operator can mend.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
DAMAGED: Final = 1  # `mta spool verify` found something
USAGE: Final = 64  # the command line is wrong, or what it asks for makes no sense
DATA: Final = 65  # the input is wrong: a message that is refused for good, a spool of a newer version
NO_INPUT: Final = 66  # a file named on the command line cannot be read
NO_USER: Final = 67  # the user to run as does not exist
UNAVAILABLE: Final = 69  # the MTA is not running, does not answer, or a port is taken
SOFTWARE: Final = 70  # a bug of ours; the traceback is on stderr
OS_ERROR: Final = 71  # the system refused something that should work: no processes, no memory
CANNOT_CREATE: Final = 73  # spool or runtime directory cannot be made or written
IO_ERROR: Final = 74  # standard input or output failed
TEMPORARY: Final = 75  # try again later: another instance holds the spool, a message was refused for now
NO_PERMISSION: Final = 77  # not allowed: a port below 1024, a socket, a change of user
CONFIG: Final = 78  # the configuration has errors; they were all printed
INTERRUPTED: Final = 130  # stopped by Ctrl-C, as the shell has it


class OperatorError(Exception):
    """Something that only the operator can mend. `str()` is the one line for him, `exit_code` ends the program."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class StartError(OperatorError):
    """The MTA, or one process of it, cannot start."""
