"""What an instance has learnt of receivers is there in the next one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace

from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold
from mta.delivery.rates import Bucket
from tests.integration.support import Mta


def table(mta: Mta) -> Limits:
    """The limits of a running instance, as one more process sees them."""
    return Limits(str(mta.directory / "run"), None)


def test_what_was_learnt_survives_a_restart(make_mta: Callable[..., Mta]) -> None:
    """An orderly end writes the file, though nothing was due to be written; the next start reads it."""
    mta = make_mta()
    now_us = time.time_ns() // 1000
    held = Hold("all", now_us + 3_600_000_000, "rule listed", "550 your address is listed", now_us)
    with mta:
        limits = table(mta)
        limits.update("slow.test", lambda state: replace(state.with_hold(held), adaptive=b"found", adaptive_us=now_us))
        limits.count("volume:acme", 7, None)
        limits.close()
    with mta:
        limits = table(mta)
        assert limits.state("slow.test").holds == (held,)
        assert limits.state("slow.test").adaptive == b"found"
        assert limits.counted("volume:acme") == 7
        limits.close()
    assert any("1 paths, 1 counters, 0 rates" in line for line in mta.log)


def test_what_was_learnt_survives_a_kill_of_everything(make_mta: Callable[..., Mta]) -> None:
    """kill -9 of all processes, before the file was ever written: suspensions, limits, learnt rates, what was counted
    today and slow rates are as they were at that moment, as the table outlives them."""
    mta = make_mta()
    now_us = time.time_ns() // 1000
    held = Hold("all", now_us + 3_600_000_000, "rule listed", "550 your address is listed", now_us)
    hourly = (Bucket("slow.test 10/h", 10, 3600.0),)
    mta.start()
    limits = table(mta)
    limits.update("slow.test", lambda state: replace(state.with_hold(held), connections=3, rate=1.5, adaptive=b"found",
                                                     adaptive_us=now_us))
    assert limits.count("day:acme", 7, 7)
    assert limits.reserve(hourly) == 0.0
    at = limits.reserve(hourly)
    limits.close()
    assert not (mta.directory / "spool" / "learnt").exists()
    mta.kill()
    with mta:
        limits = table(mta)
        state = limits.state("slow.test")
        assert (state.holds, state.connections, state.rate, state.adaptive) == ((held,), 3, 1.5, b"found")
        assert not limits.count("day:acme", 1, 7)
        assert abs(limits.reserve(hourly) - at) < 60.0  # the clocks are compared to a fraction of a second
        limits.close()


def test_a_damaged_file_keeps_nobody_from_starting(make_mta: Callable[..., Mta]) -> None:
    """One line says so; after a start of the machine, else there is the table."""
    mta = make_mta()
    with mta:
        pass
    shutil.rmtree(mta.directory / "run" / "limits")
    (mta.directory / "spool" / "learnt").write_bytes(b"mta learnt 1\ngarbage")
    with mta:
        pass
    assert len([line for line in mta.log if "going on without what was learnt" in line]) == 1
