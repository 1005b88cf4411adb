"""The checker of a spool that nobody uses: reads everything, changes nothing, tells what is not as it should be.

    verify_spool(path)          a spool, all of its shards
    verify_shard(path)          one shard directory

Journal, index, contents, event files and marks are checked each in itself and against the others: what the next start
would make of them has to be what was accepted and what events tell (I1, I2).

Memory is bounded: one message and one queue of the index at a time, what the journal has beyond the last checkpoint
(some 40,000 changed deliveries), and 500,000 entries of the accounts of recipients (some 100 MB), of which the others
are in temporary files. Reading is sequential.
"""

from __future__ import annotations

from mta.queue.verify.problems import KINDS, Problem, Summary
from mta.queue.verify.spool import Verification, verify_shard, verify_spool

__all__ = ["KINDS", "Problem", "Summary", "Verification", "verify_shard", "verify_spool"]
