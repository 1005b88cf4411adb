"""Options of the checks on messages that come in: what is refused, told of or added before the `250`.

`Checks` holds for all mail. A tenant, listener, spool directory or user changes some of it by
`CheckChanges`.
"""

# ruff: noqa: RUF009 -- option() makes a dataclass field, as dataclasses.field() does

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from mta.config.hosts import Domain
from mta.config.option import option
from mta.config.units import Size

Missing: TypeAlias = Literal["add", "warn", "refuse"]
Lenient: TypeAlias = Literal["accept", "warn", "refuse"]
Strict: TypeAlias = Literal["warn", "refuse"]
Needed: TypeAlias = Literal["accept", "warn", "add", "refuse"]
Mail: TypeAlias = Literal["bulk", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What mail must be like, whatever way it comes in: large receivers refuse mail that is not, and remember who sent
    it. `refuse`: `550 5.6.0` with the field and what to do. `warn`: it is taken, counted in `mta status`, told in the
    log (a line in ten minutes, with the number) and in `warnings` of its event `received`. `add`: the field is put at
    the top. Tenants, listeners, spool directories and users may change this; the latter one's word goes first."""

    missing_date: Missing = option(
        "add", "No Date: add the time of arrival (RFC 6409 8.2); with `warn` it is added and told of.")
    missing_message_id: Missing = option("add", "No Message-ID: make one (RFC 6409 8.3); with `warn` likewise.")
    missing_from: Needed = option(
        "add", "No From: add the envelope sender. Mail with the null sender gets none, and a warning.")
    repeated: Lenient = option(
        "refuse", "A field twice that may be there once (RFC 5322 3.6): Date, From, Sender, Reply-To, To, Cc, Bcc, "
        "Message-ID, In-Reply-To, References, Subject.")
    header_size: Size = option(Size(262_144), "Largest header section.", min=1000, max=262_144)
    field_size: Size = option(Size(102_400), "Largest header field, its continuation lines included.", min=998)
    fields: int = option(1000, "Lines of the header section, continuation lines included.", min=20)
    oversized: Strict = option(
        "refuse", "A header section beyond these three sizes. One of more than 256 KiB is refused in any case, and so "
        "is one beyond them with more than 5,000 lines.")
    from_domains: tuple[Domain, ...] = option(
        (), "Domains, with those below them, that addresses in From may have; empty: all.",
        example="[example.org, example.net]")
    foreign_from: Strict = option(
        "refuse", "A From that has another domain than `from_domains`, or that cannot be read: `550 5.7.1`.")
    unsubscribe: Needed = option(
        "warn", "Bulk mail without unsubscription by one click (RFC 8058): List-Unsubscribe with one https URI, and "
        "List-Unsubscribe-Post. `add` adds both to mail that has neither and one recipient, and refuses the rest.")
    unsubscribe_for: Mail = option(
        "bulk", "Which mail has to have it: that of the priority `bulk` (see `labels`), or all.")
    unsubscribe_uri: str | None = option(
        None, "The URI to add, with `{id}` for the id of the message, by which its event `received` tells the "
        "recipient; `{tenant}` and `{campaign}` are known, too. It must answer a POST (RFC 8058 3.2).",
        example='"https://example.org/unsubscribe/{tenant}/{id}"')


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckChanges:
    """What is different from `checks` for this mail; the options are explained there."""

    missing_date: Missing | None = option(None, "No Date.")
    missing_message_id: Missing | None = option(None, "No Message-ID.")
    missing_from: Needed | None = option(None, "No From.")
    repeated: Lenient | None = option(None, "A field twice that may be there once.")
    header_size: Size | None = option(None, "Largest header section.", min=1000, max=262_144)
    field_size: Size | None = option(None, "Largest header field.", min=998)
    fields: int | None = option(None, "Lines of the header section.", min=20)
    oversized: Strict | None = option(None, "A header section beyond these three sizes.")
    from_domains: tuple[Domain, ...] = option((), "Domains that From may have; empty: as `checks` says.")
    foreign_from: Strict | None = option(None, "A From that has another domain.")
    unsubscribe: Needed | None = option(None, "Bulk mail without unsubscription by one click.")
    unsubscribe_for: Mail | None = option(None, "Which mail has to have it.")
    unsubscribe_uri: str | None = option(None, "The URI to add.")


NO_CHANGES = CheckChanges()


_Some = TypeVar("_Some", Checks, CheckChanges)


def changed(checks: _Some, *changes: CheckChanges | None) -> _Some:
    """`checks`, or changes of them, with what these change, the last one's word counting most."""
    for one in changes:
        if one is not None and one != NO_CHANGES:
            values = ((field.name, getattr(one, field.name)) for field in dataclasses.fields(one))
            checks = dataclasses.replace(checks, **{name: value for name, value in values if value not in (None, ())})
    return checks


_DOMAINS_TOLD = 30_000  # octets


def surely_refused(checks: Checks, tenants: Iterable[CheckChanges], place: CheckChanges) -> dict[str, object]:
    """What is refused of what comes in at a place, whatever tenant it claims to be of: for programs that write into a
    spool directory (`mta.sendmail`), which have somebody to tell."""
    rules = [changed(checks, tenant, place) for tenant in (None, *tenants)]
    told: dict[str, object] = {"repeated": all(one.repeated == "refuse" for one in rules)}
    if all(one.oversized == "refuse" for one in rules):
        told |= {name: max(getattr(one, name) for one in rules) for name in ("header_size", "field_size", "fields")}
    domains = rules[0].from_domains
    if domains and all(one.foreign_from == "refuse" and one.from_domains == domains for one in rules) \
            and sum(map(len, domains)) < _DOMAINS_TOLD:
        told["from_domains"] = list(domains)
    return told


URI_LIMIT = 400
"""Characters of `unsubscribe_uri`: with its names filled in it must fit into a line of 998."""


def uri_fault(uri: str) -> str:
    """What is wrong with an `unsubscribe_uri`; empty when nothing is."""
    if len(uri) > URI_LIMIT:
        return f"expected at most {URI_LIMIT} characters"
    if not uri.startswith("https://") or len(uri) < 10:
        return "expected a URI that begins with https:// (RFC 8058 3.1)"
    if "{id}" not in uri:
        return "expected {id} in it: without, nobody knows who does not want more mail"
    rest = uri
    for name in ("{id}", "{tenant}", "{campaign}"):
        rest = rest.replace(name, "")
    if not rest.isascii() or not rest.isprintable() or any(char in rest for char in ' <>"\\^`{|},'):
        return "expected a URI of ASCII without spaces, commas and brackets; only {id}, {tenant}, {campaign} are known"
    return ""
