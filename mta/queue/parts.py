"""How the room in memory is shared by sites: what one of them may hold depends on how much is free.

A part may hold up to `GREED` times what is free just then (dynamic thresholds; Choudhury and Hahne, "Dynamic queue
length thresholds for shared-memory packet switches", 1998). One slow site alone has two thirds of the memory, two have
two fifths each, ten leave a twentieth: there is always room for those who have little there, and nothing to configure.
Queues of a part that has its share stand in a line of their own, at no cost, until half of it has been delivered. The
places in all lines are shared in the same way: one part alone has half of them. What finds none is looked for in the
index when the line is empty, from the first queue that is due on, and each such look is in vain for what finds no place
again: work that grows with the square of the number of queues beyond the lines. So there are many places.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

GREED: Final = 2
LINES: Final = 100_000  # queues in line for all parts together, 24 MB; beyond, the index remembers them
FEW: Final = 1000  # in line for one part in any case
RESERVED: Final = 16  # one in so many deliveries that memory may hold is for transactional mail alone


class Part:
    """What the queues of one site hold together."""

    __slots__ = ("coming", "held", "line", "more", "name", "queues")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0  # deliveries in memory
        self.coming = 0  # that loads under way may bring
        self.queues = 0  # that are in memory
        self.line: OrderedDict[tuple[int, str], None] = OrderedDict()
        self.more = False  # the index has queues that found no place in a line

    def __repr__(self) -> str:
        return f"<Part {self.name}: {self.held} held, {self.queues} queues, {len(self.line)} in line>"

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing, and nothing is on its way."""
        return not (self.held or self.coming)

    def room(self, free: int) -> int:
        """How many more it may hold when so many are free."""
        return GREED * free - self.held - self.coming

    def is_low(self, free: int) -> bool:
        """Whether half of its share, or more, is not used."""
        return 2 * (self.held + self.coming) <= GREED * free


class Parts:
    """All parts that hold or want something."""

    def __init__(self, places: int = LINES) -> None:
        self._parts: dict[str, Part] = {}
        self._places = places  # in lines that are free

    def __len__(self) -> int:
        return len(self._parts)

    def join(self, name: str) -> Part:
        """The part of this name, for one more queue. Hot path."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = Part(name)
        part.queues += 1
        return part

    def line_up(self, part: Part, key: tuple[int, str]) -> None:
        """A queue has to wait until the part has room."""
        if key in part.line:
            return
        if len(part.line) < max(self._places, FEW):  # a part whose line is empty is called by nobody
            part.line[key] = None
            self._places -= 1
        else:
            part.more = True

    def next_in_line(self, part: Part) -> tuple[int, str]:
        """Take the first queue out of the line of `part`, which has one."""
        self._places += 1
        return part.line.popitem(last=False)[0]

    def dissolve(self, part: Part) -> None:
        """Nobody stands in line any more: the index remembers them."""
        self._places += len(part.line)
        part.line.clear()
        part.more = True

    def leave(self, part: Part) -> None:
        """One queue less; a part that nobody is in is forgotten."""
        part.queues -= 1
        if not part.queues:
            self.tidy(part)

    def tidy(self, part: Part) -> None:
        """Forget a part that is of no more use."""
        if not (part.queues or part.line or part.held or part.coming):
            self._parts.pop(part.name, None)
