"""From an accepted configuration to what the children need: directories, locks, ports, and no more root.

The order matters. Locks come before ports, because what a killed instance left behind may hold both and only the lock
can be waited for. Ports come before the change of user, because some need root. All writing in spool and runtime
directory comes after it.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

from mta.config.schema import Config
from mta.control import listen, privileges, spool, systemd

UMASK: Final = 0o027  # the group of the MTA's user are its operators: they may use the control socket
MAX_OPEN_FILES: Final = 1_048_576

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Resources:
    """What the children inherit."""

    locks: list[int]  # descriptors
    listeners: list[tuple[int, socket.socket]]  # with their index in config.listeners
    shards: list[list[int]]  # of each worker


def prepare(config: Config, environment: MutableMapping[str, str]) -> Resources:
    """Make everything ready to start children, and become the configured user. Raises StartError."""
    become = privileges.identity(config.user)
    passed = systemd.take_sockets(environment)
    os.umask(UMASK)
    _raise_open_files(config)
    locks = []
    for path, what, mode in (
        (config.spool, "spool", spool.DIRECTORY_MODE), (config.run, "runtime directory", spool.RUN_MODE)
    ):
        spool.make_directory(path, what, become, mode)
        locks.append(spool.take_lock(path, what, become))
    for pickup in config.pickup:
        spool.make_directory(pickup.directory, "pickup directory", become)
    sockets = listen.listen(config, passed, become)
    if become is not None:
        privileges.drop(become)
    spool.check_writable(config.spool, "spool")
    spool.check_writable(config.run, "runtime directory")
    spool.check_version(config.spool)
    _rescue(config)
    spool.clean_run(config.run)
    shards = spool.assign_shards(config.spool, worker_count(config))
    _remember(config)
    return Resources(locks, list(enumerate(sockets)), shards)


def _rescue(config: Config) -> None:
    """What an earlier instance learnt, and could not write down because it was killed."""
    from mta.delivery import learnt

    learnt.rescue(config.run, config.spool, time.time_ns() // 1000)


def _remember(config: Config) -> None:
    """What an earlier instance learnt of receivers, into the new table of limits."""
    from mta.delivery import learnt  # the supervisor needs no more of delivery, and nothing of it later

    learnt.restore(config.run, config.spool, time.time_ns() // 1000)


def worker_count(config: Config) -> int:
    """How many workers to start: `auto` is one per processor core that we may run on."""
    return len(os.sched_getaffinity(0)) if config.workers == "auto" else config.workers


def _raise_open_files(config: Config) -> None:
    """Allow every process as many open files as the system lets us, and say so when that is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or most <= soft:
        most = soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    wanted = config.smtp.sessions + config.delivery.connections + 200
    if most != resource.RLIM_INFINITY and most < wanted:
        _log.warning(
            "a process may open %d files, but smtp.sessions and delivery.connections allow for %d: "
            "raise the limit (ulimit -n, LimitNOFILE=) or lower these", most, wanted,
        )  # fmt: skip
