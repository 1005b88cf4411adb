"""Repairs a spool that nobody uses, so that the next start works and every account is settled.

    repair_spool(spool)         check, repair what is damaged, check again

What is damaged goes to `quarantine/` in its shard (`mta.queue.repair.quarantine`). The index is made anew beside its
place, from what is readable of it, from the journal, and from what the event files tell of ends
(`mta.queue.repair.rebuild`, `.books`); what has to be told is appended to the journal as a frame; then the new index
takes the place of the old one by a rename. Nothing that is old changes before that, so a repair that is killed can be
run again at any point. A mail that can be read stays in the queue; one that cannot leaves it with an event.
"""

from __future__ import annotations

from mta.queue.repair.quarantine import Action
from mta.queue.repair.spool import Repair, repair_spool

__all__ = ["Action", "Repair", "repair_spool"]
