"""Reads an LMDB data file page by page, without LMDB and without trusting it.

LMDB maps its file and follows what is written there: a damaged page number or a file that was cut off makes it read
what it should not, and ends the process (SIGBUS, SIGSEGV). So a file is read here first, by `pread`, and everything
that LMDB relies on is checked: the two meta pages, the header of every page in use, the extent of every node, the
order of keys, that no page is used twice or free and used at once, and the counts of each tree. What is readable of a
damaged one can be read all the same.

The format is that of LMDB 0.9 (`mdb.c`: MDB_page, MDB_node, MDB_meta, MDB_db) on a 64-bit little-endian machine, data
version 1, without duplicate keys. It takes some 2 µs per entry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

_HEADER: Final = Struct("<QHHHH")  # page number, nothing, flags, lower, upper
_OVERFLOW_PAGES: Final = Struct("<I")  # in place of lower and upper
_NODE: Final = Struct("<HHHH")  # low and high half of the size, flags, size of the key
_TREE: Final = Struct("<IHHQQQQQ")  # page size or nothing, flags, depth, branch, leaf, overflow pages, entries, root
_META: Final = Struct("<IIQQ")  # magic, version, address, size of the map; then two trees
_META_END: Final = Struct("<QQ")  # last page, transaction
_NUMBER: Final = Struct("<Q")
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1

_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_OVERFLOW: Final = 0x04
_META_PAGE: Final = 0x08
_KIND: Final = 0x7F  # the bits of flags that say what a page is; only those above occur

_BIG: Final = 0x01  # the data of a node are in overflow pages
_SUBTREE: Final = 0x02

_INTEGER_KEY: Final = 0x08
_NO_PAGE: Final = (1 << 64) - 1
_FIRST_PAGE: Final = 2
_DEEPEST: Final = 32
_SIZES: Final = tuple(1 << bits for bits in range(8, 17))


class Tree(NamedTuple):
    """A database: where its tree is and how large it should be."""

    page_size: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Unusable(Exception):  # noqa: N818 -- as in mta.queue.errors
    """The file cannot even be begun with; one line for the operator."""


@dataclass(slots=True)
class Gap:
    """Keys that could not be read: from `first` on (b"": all before the end), up to `end` (None: to the last)."""

    first: bytes
    end: bytes | None


class _Damage(Exception):  # noqa: N818
    """A page is damaged: its number, and how."""

    def __init__(self, page: int, text: str) -> None:
        super().__init__(text)
        self.page = page


class PageFile:
    """One data file, as of its last transaction."""

    def __init__(self, path: Path, report: Callable[[int, str], None]) -> None:
        """`report` is told the offset and the text of each damage. Raises Unusable and OSError."""
        self._report = report
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if sys.byteorder != "little" or sys.maxsize < 1 << 62:
                raise Unusable("this machine's layout of the index cannot be checked")
            self._size = os.fstat(self._fd).st_size
            self.page_size, self._free, self._main, self._last_page = self._read_meta()
            self._used = bytearray(min(self._last_page + 1, self._size // self.page_size))
            self._used[:_FIRST_PAGE] = b"\1" * min(_FIRST_PAGE, len(self._used))
            self.trees: dict[bytes, Tree] = {}
            for key, value in self.entries(self._main, subtrees=True):
                self.trees[key] = Tree(*_TREE.unpack(value))
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def check(self) -> None:
        """Read all of it, and report what is damaged. Raises OSError."""
        for tree in self.trees.values():
            for _ in self.entries(tree):
                pass
        self._check_free()

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _read_meta(self) -> tuple[int, Tree, Tree, int]:
        """Page size, the trees of free pages and of databases, and the last page, of the later transaction."""
        newest: tuple[int, tuple[int, Tree, Tree, int]] | None = None
        size = 0
        for number in range(_FIRST_PAGE):
            raw = os.pread(self._fd, _HEADER.size + _META.size + 2 * _TREE.size + _META_END.size, number * size)
            if len(raw) < _HEADER.size + _META.size + 2 * _TREE.size + _META_END.size:
                raise Unusable(f"the file ends in meta page {number}")
            _, _, flags, _, _ = _HEADER.unpack_from(raw)
            at = _HEADER.size
            magic, version, _, _ = _META.unpack_from(raw, at)
            at += _META.size
            if not flags & _META_PAGE or magic != _MAGIC:
                raise Unusable(f"meta page {number} is damaged")
            if version != _VERSION:
                raise Unusable(f"the file has the format {version} of LMDB, this program knows {_VERSION}")
            free, main = Tree(*_TREE.unpack_from(raw, at)), Tree(*_TREE.unpack_from(raw, at + _TREE.size))
            last_page, transaction = _META_END.unpack_from(raw, at + 2 * _TREE.size)
            size = free.page_size
            if size not in _SIZES:
                raise Unusable(f"meta page {number} is damaged: pages of {size} bytes")
            if newest is None or transaction > newest[0]:
                newest = transaction, (size, free, main, last_page)
        assert newest is not None
        return newest[1]

    # -- trees ---------------------------------------------------------------------------------------------------------

    def entries(self, tree: Tree, gaps: list[Gap] | None = None, *, subtrees: bool = False
                ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the order of the keys. What cannot be read is reported, and left out (see `gaps`).

        To be called once for each tree, as every page may be used once. Raises OSError.
        """
        if tree.root == _NO_PAGE:
            if tree.entries:
                self._report(0, f"a tree of {tree.entries} entries has no root")
            return
        walk = _Walk(tree, subtrees, [] if gaps is None else gaps)
        count = 0
        numbered = tree.flags & _INTEGER_KEY
        last: bytes | None = None
        for key, value in self._branch(walk, tree.root, 1, b"", None):
            count += 1
            if numbered and len(key) != _NUMBER.size:
                self._report(0, f"the key {key.hex()} is no number")
            place = key[::-1] if numbered else key  # of a number the lowest octet comes first
            if last is not None and last >= place:
                self._report(0, f"the key {key.hex()} is not in its order")
            last = place
            yield key, value
        if not walk.damaged and (count, walk.branches, walk.leaves, walk.overflows) != (
                tree.entries, tree.branch_pages, tree.leaf_pages, tree.overflow_pages):
            self._report(0, f"a tree is said to have {tree.entries} entries in {tree.leaf_pages} pages, but has "
                         f"{count} in {walk.leaves}")

    def _branch(self, walk: _Walk, number: int, depth: int, first: bytes, end: bytes | None
                ) -> Iterator[tuple[bytes, bytes]]:
        """The entries below a page; all keys are between `first` and `end`."""
        try:
            page, flags = self._page(number)
            if flags & _LEAF:
                if depth != walk.tree.depth:
                    raise _Damage(number, f"a leaf at depth {depth} of a tree of depth {walk.tree.depth}")
                walk.leaves += 1
                found = list(self._leaf(walk, number, page))
                children = []
            else:
                if depth >= min(walk.tree.depth, _DEEPEST):
                    raise _Damage(number, f"a branch at depth {depth} of a tree of depth {walk.tree.depth}")
                walk.branches += 1
                found = []
                children = list(self._children(number, page))
        except _Damage as damage:
            walk.damaged = True
            walk.gaps.append(Gap(first, end))
            self._report(damage.page * self.page_size, str(damage))
            return
        yield from found
        for index, (key, child) in enumerate(children):
            after = children[index + 1][0] if index + 1 < len(children) else end
            yield from self._branch(walk, child, depth + 1, key if index else first, after)

    def _page(self, number: int) -> tuple[bytes, int]:
        """A page of a tree, and its flags."""
        self._take(number, 1)
        page = os.pread(self._fd, self.page_size, number * self.page_size)
        its_number, _, flags, lower, upper = _HEADER.unpack_from(page)
        if its_number != number or flags & _KIND not in (_BRANCH, _LEAF):
            raise _Damage(number, f"this is no page {number} of a tree")
        if not _HEADER.size <= lower <= upper <= self.page_size or lower % 2:
            raise _Damage(number, f"the page says that it is used up to {lower} and from {upper} on")
        return page, flags

    def _take(self, number: int, count: int) -> None:
        if number < _FIRST_PAGE or number + count > len(self._used):
            raise _Damage(number if number < len(self._used) else 0,
                          f"page {number} is used, but the file has {len(self._used)}")
        if any(self._used[number:number + count]):
            raise _Damage(number, "the page is used twice")
        self._used[number:number + count] = b"\1" * count

    def _nodes(self, number: int, page: bytes) -> Iterator[tuple[int, int, int, int]]:
        """Offset of the key, size of the key, size of the data, flags of each node. Sizes are checked later."""
        _, _, _, lower, upper = _HEADER.unpack_from(page)
        count = (lower - _HEADER.size) // 2
        for offset in Struct(f"<{count}H").unpack_from(page, _HEADER.size):
            if not upper <= offset <= len(page) - _NODE.size:
                raise _Damage(number, f"a node at {offset} of the page, which is used from {upper} on")
            low, high, flags, key_size = _NODE.unpack_from(page, offset)
            if offset + _NODE.size + key_size > len(page):
                raise _Damage(number, f"the node at {offset} of the page has a key of {key_size} bytes")
            yield offset + _NODE.size, key_size, low | high << 16, flags

    def _children(self, number: int, page: bytes) -> Iterator[tuple[bytes, int]]:
        for at, key_size, low, flags in self._nodes(number, page):
            yield page[at:at + key_size], low | flags << 32

    def _leaf(self, walk: _Walk, number: int, page: bytes) -> Iterator[tuple[bytes, bytes]]:
        for at, key_size, size, flags in self._nodes(number, page):
            data = at + key_size
            inside = _NUMBER.size if flags & _BIG else size
            if data + inside > len(page) or flags & ~_BIG != (_SUBTREE if walk.subtrees else 0):
                raise _Damage(number, f"the node at {at - _NODE.size} of the page has {size} bytes of kind {flags}")
            if walk.subtrees and size != _TREE.size:
                raise _Damage(number, f"the description of a tree has {size} bytes")
            key = page[at:data]
            yield key, self._overflow(walk, number, page, data, size) if flags & _BIG else page[data:data + size]

    def _overflow(self, walk: _Walk, number: int, page: bytes, at: int, size: int) -> bytes:
        """The data of a node that are in pages of their own."""
        first = _NUMBER.unpack_from(page, at)[0]
        raw = b""
        if first < len(self._used):
            raw = os.pread(self._fd, _HEADER.size + size, first * self.page_size)
        if len(raw) < _HEADER.size + size:
            raise _Damage(number, f"page {first} does not exist, where a node here has {size} bytes")
        its_number, _, flags, _, _ = _HEADER.unpack_from(raw)
        pages = _OVERFLOW_PAGES.unpack_from(raw, _HEADER.size - _OVERFLOW_PAGES.size)[0]
        # A value that was replaced by a smaller one keeps its pages.
        if its_number != first or flags & _KIND != _OVERFLOW or pages * self.page_size < len(raw):
            raise _Damage(number, f"page {first} does not hold the {size} bytes that a node here has")
        self._take(first, pages)
        walk.overflows += pages
        return raw[_HEADER.size:]

    # -- what is free --------------------------------------------------------------------------------------------------

    def _check_free(self) -> None:
        """Pages that the next transactions will overwrite must not be in use, and not be listed twice."""
        for key, value in list(self.entries(self._free)):
            numbers = Struct(f"<{len(value) // _NUMBER.size}Q").unpack_from(value)
            if not numbers or numbers[0] != len(numbers) - 1:
                self._report(0, f"the list of pages that became free in transaction {key.hex()} is damaged")
                continue
            for number in numbers[1:]:
                if not _FIRST_PAGE <= number <= self._last_page:
                    self._report(0, f"page {number} is listed as free, the last one is {self._last_page}")
                elif number < len(self._used):
                    if self._used[number]:
                        self._report(number * self.page_size, "the page is listed as free and used, or listed twice")
                    self._used[number] = 1


@dataclass(slots=True)
class _Walk:
    """What is counted on the way through one tree."""

    tree: Tree
    subtrees: bool
    gaps: list[Gap]
    branches: int = 0
    leaves: int = 0
    overflows: int = 0
    damaged: bool = False
