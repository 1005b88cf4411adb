"""What an instance has learnt of receivers is there in the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from mta.delivery.limits import Limits
from mta.delivery.pathstate import Hold
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


def test_a_damaged_file_keeps_nobody_from_starting(make_mta: Callable[..., Mta]) -> None:
    """One line says so."""
    mta = make_mta()
    with mta:
        pass
    (mta.directory / "spool" / "learnt").write_bytes(b"mta learnt 1\ngarbage")
    with mta:
        pass
    assert len([line for line in mta.log if "going on without what was learnt" in line]) == 1
