"""Read the address list of a To, Cc, Bcc, From, Sender or Return-Path header (RFC 5322 3.4).

Strict on purpose: the result becomes an envelope, so a text that two readers could take for two different addresses
is an error with its place, never a guess (the CVE-2023-27043 class of mistakes). Read are mailboxes with and without
display name, groups, comments, quoted strings, folding, UTF-8 (RFC 6532), empty list elements, and dots in display
names, which RFC 5322 4 allows to be read. Not read are source routes and white space inside a local part or domain.

What `sendmail -t` and its command line may say beside that is an address without a domain, `root`: it is read only
where a domain for it is given.

Time is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SPECIAL = r"\x00-\x20\x7f-\xa0()<>\[\]:;@\\,.\""
_ATOM = re.compile(rf"[^{_SPECIAL}]+")
_DOT_ATOM = re.compile(rf"[^{_SPECIAL}]+(?:\.[^{_SPECIAL}]+)*")
_SPACE = re.compile(r"(?:[ \t]|\r\n(?=[ \t]))+")
_QUOTED = re.compile(r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f-\x9f]|\\[\t\x20-\x7e]|\r\n(?=[ \t]))*"')
_LITERAL = re.compile(r"\[[!-Z^-~]*\]")
_COMMENT_TEXT = re.compile(r"(?:[^()\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e]|\r\n(?=[ \t]))+")


class AddressError(ValueError):
    """The text is no address list. `position` is the offset in it where reading stopped."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(what)
        self.position = position


class Mailbox(NamedTuple):
    """One address `local@domain`, the local part quoted as it was written, and where it stands in the text."""

    address: str
    position: int


def parse_list(text: str, domain: str = "") -> list[Mailbox]:
    """All mailboxes of an address list, those of groups included. Raises AddressError.

    With a `domain`, a local part alone is an address in that domain.
    """
    return _Parser(text, domain).address_list()


class _Parser:
    def __init__(self, text: str, domain: str = "") -> None:
        self.text = text
        self.domain = domain
        self.position = 0
        self.found: list[Mailbox] = []

    def address_list(self) -> list[Mailbox]:
        in_group = False
        expect_separator = False
        while True:
            self.skip()
            char = self.peek()
            if char == "" and in_group:
                raise self.error("the group has no `;` at its end")
            if char == "":
                return self.found
            if char == ",":
                self.position += 1
                expect_separator = False
            elif char == ";" and in_group:
                self.position += 1
                in_group = False
                expect_separator = True
            elif expect_separator:
                raise self.error("expected a comma between addresses")
            else:
                opened_group = self.address(in_group)
                in_group = in_group or opened_group
                expect_separator = not opened_group

    def address(self, in_group: bool) -> bool:
        """Read a mailbox, or a group up to its colon; return whether it was a group."""
        start = end = self.position
        words = 0
        while True:
            char = self.peek()
            pattern = _QUOTED if char == '"' else _ATOM
            match = pattern.match(self.text, self.position)
            if match:
                self.position = match.end()
                words += 1
            elif char == ".":
                self.position += 1
            else:
                break
            end = self.position
            self.skip()
        if char == "@":
            self.mailbox(start, end)
            return False
        if char == "<":
            self.angle_address()
            return False
        if char == ":":
            if in_group or not words:
                raise self.error("a group inside a group" if in_group else "a group needs a name")
            self.position += 1
            return True
        if self.domain and char in ("", ",", ";") and self.alone(start, end):
            return False
        if char == '"':
            raise self.error("this quoted string has no end, or a control character in it")
        if words:
            raise AddressError(start, f"expected an address, found {self.text[start:end][:60]!r}; a name with special "
                               "characters must be in quotes")
        raise self.error("expected an address")

    def angle_address(self) -> None:
        self.position += 1
        self.skip()
        start = self.position
        match = (_QUOTED if self.peek() == '"' else _DOT_ATOM).match(self.text, start)
        if not match:
            raise self.error("source routes are not read" if self.peek() == "@" else "expected an address after `<`")
        self.position = match.end()
        self.skip()
        if self.peek() == "@":
            self.mailbox(start, match.end())
        elif not (self.domain and self.peek() == ">" and self.alone(start, match.end())):
            raise self.error("expected `@`")
        self.skip()
        if self.peek() != ">":
            raise self.error("expected `>`")
        self.position += 1

    def alone(self, start: int, end: int) -> bool:
        """Whether `text[start:end]` is a local part; then it is an address in our domain."""
        local = self.text[start:end]
        if not (_DOT_ATOM.fullmatch(local) or _QUOTED.fullmatch(local)):
            return False
        self.found.append(Mailbox(f"{local.replace(chr(13) + chr(10), '')}@{self.domain}", start))
        return True

    def mailbox(self, start: int, end: int) -> None:
        """The local part is `text[start:end]` and an `@` is next."""
        local = self.text[start:end]
        if not (_DOT_ATOM.fullmatch(local) or _QUOTED.fullmatch(local)):
            raise AddressError(start, f"{local[:60]!r} is no local part of an address")
        self.position += 1
        self.skip()
        match = _LITERAL.match(self.text, self.position) or _DOT_ATOM.match(self.text, self.position)
        if not match:
            raise self.error("expected a domain after `@`")
        self.position = match.end()
        self.found.append(Mailbox(f"{local.replace(chr(13) + chr(10), '')}@{match[0]}", start))

    def skip(self) -> None:
        """Skip white space and comments."""
        while True:
            match = _SPACE.match(self.text, self.position)
            if match:
                self.position = match.end()
            if self.peek() != "(":
                return
            self.comment()

    def comment(self) -> None:
        start = self.position
        depth = 0
        while True:
            char = self.peek()
            if char == "(":
                depth += 1
                self.position += 1
            elif char == ")":
                depth -= 1
                self.position += 1
                if depth == 0:
                    return
            else:
                match = _COMMENT_TEXT.match(self.text, self.position)
                if not match:
                    raise AddressError(start, "this comment has no end, or a control character in it")
                self.position = match.end()

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def error(self, what: str) -> AddressError:
        return AddressError(self.position, what)
