"""How much content all sessions of a process may hold together while they receive it."""

from __future__ import annotations

UNKNOWN = 65_536  # octets counted for a message whose size was not declared, until more of it has come


class Budget:
    """Octets that are left, counted by whoever takes and gives back. Hot path: twice per message."""

    __slots__ = ("full", "limit", "used")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0
        self.full = False  # something was refused, and more than half is still taken

    def has_room(self, octets: int) -> bool:
        """Whether `octets` more could be held now."""
        if self.used + octets > self.limit:
            self.full = True
            return False
        return True

    def take(self, octets: int) -> bool:
        """Whether `octets` more may be held; then they count."""
        used = self.used + octets
        if used > self.limit:
            self.full = True
            return False
        self.used = used
        return True

    def give_back(self, octets: int) -> None:
        """They are held no more."""
        self.used -= octets
        if self.full and self.used * 2 <= self.limit:
            self.full = False

    def trouble(self) -> str | None:
        """None, or why not everybody may send."""
        if not self.full:
            return None
        return (f"{self.used // 1_000_000} MB of content are being received, "
                f"memory.receiving allows {self.limit / 1_000_000:.0f} MB")
