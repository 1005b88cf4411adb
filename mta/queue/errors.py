"""What can go wrong with the store, grouped by who has to act. Every text is one line for the operator."""

# ruff: noqa: N818 -- the names say what is the matter; "Error" at the end of each would not say more.

from __future__ import annotations


class StoreError(Exception):
    """The store could not do what was asked; nothing of it was done."""


class StoreFull(StoreError):
    """No space to take more mail. It may go away by itself: the client is asked to come back (`452 4.3.1`)."""


class StoreLocked(StoreError):
    """Another process owns the shard."""


class StoreVersion(StoreError):
    """The shard was written by a newer version of this program."""


class StoreUnusable(StoreError):
    """The shard cannot be opened: not writable, not ours, or damaged beyond what recovery mends."""


class BodyUnreadable(StoreError):
    """The content of a message cannot be read now, such as for want of file descriptors: it may be as good as ever."""


class BodyDamaged(Exception):
    """The content of a message on disk is not what was accepted: its checksum differs, or it cannot be read."""
