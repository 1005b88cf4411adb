"""Texts of the configuration that have a form: names that the operator gives, users, senders, URLs, paths.

Every `parse_*` raises ValueError with a text for the operator. Nothing here looks at the network or the file system.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from mta.config.hosts import address_of, is_address, parse_domain

Name: TypeAlias = Annotated[str, "Name"]
"""A name given by the operator to a source, pool, tenant or provider: letters, digits, `.`, `_` and `-`, at most 64."""

HeaderName: TypeAlias = Annotated[str, "HeaderName"]
"""The name of a header field (RFC 5322 2.2), in the case in which it was written."""

UserName: TypeAlias = Annotated[str, "UserName"]
"""The name of who logs in: 1 to 128 visible ASCII characters without a colon, not beginning with `#` or `*`."""

SenderPattern: TypeAlias = Annotated[str, "SenderPattern"]
"""A mailbox, a domain, or `*.domain` for all domains below it. Domains are lower case and A-labels."""

HttpUrl: TypeAlias = Annotated[str, "HttpUrl"]
"""A URL of HTTPS; HTTP to a loopback address alone. Without user, password and fragment."""

ProvidersFile: TypeAlias = Annotated[str, "ProvidersFile"]
"""`shipped`, `none`, or a path, which the loader makes absolute."""

FilePath: TypeAlias = Annotated[str, "FilePath"]
"""A path of a file. The loader makes it absolute."""

Directory: TypeAlias = Annotated[str, "Directory"]
"""A path in the file system. The loader makes it absolute."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def parse_label(text: str) -> Name:
    """Read the name of a source, pool, tenant or campaign. Raises ValueError."""
    text = text.strip()
    if not _LABEL_NAME.fullmatch(text):
        raise ValueError("a name has 1 to 64 letters, digits, dots, hyphens and underscores")
    return text


_HEADER_NAME = re.compile(r"[!-9;-~]{1,64}", re.ASCII)


def parse_header_name(text: str) -> HeaderName:
    """Read the name of a header field. Raises ValueError."""
    text = text.strip().removesuffix(":")
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("not the name of a header field such as X-Tenant")
    return text


_USER_NAME = re.compile(r"(?![#*])[!-9;-~]{1,128}", re.ASCII)


def parse_user_name(text: str) -> UserName:
    """Read the name of who logs in. Raises ValueError."""
    text = text.strip()
    if not _USER_NAME.fullmatch(text):
        raise ValueError("a user has 1 to 128 visible ASCII characters without a colon, and begins with no # or *")
    return text


_LOCAL_PART = re.compile(r"[^\s@<>\"\\]{1,128}")


def parse_sender_pattern(text: str) -> SenderPattern:
    """Read `a@example.org`, `example.org` or `*.example.org`. Raises ValueError."""
    local, at, domain = text.strip().rpartition("@")
    if at and not _LOCAL_PART.fullmatch(local):
        raise ValueError("not a mailbox such as news@example.org, a domain, or *.example.org for those below it")
    below = domain.startswith("*.") and not at
    name = parse_domain(domain.removeprefix("*.") if below else domain)
    return f"{local}@{name}" if at else f"*.{name}" if below else name


def parse_http_url(text: str) -> HttpUrl:
    """Read a URL. Raises ValueError."""
    text = text.strip()
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("not a URL such as https://auth.example.net/smtp") from None
    if not url.hostname or url.scheme not in ("http", "https") or not text.isascii() or not text.isprintable() \
            or " " in text or port == 0:
        raise ValueError("not a URL such as https://auth.example.net/smtp")
    if url.username is not None or url.password is not None or url.fragment:
        raise ValueError("a URL has no user, password or fragment here")
    loopback = url.hostname == "localhost" or (is_address(url.hostname) and address_of(url.hostname).is_loopback)
    if url.scheme == "http" and not loopback:
        raise ValueError("passwords go there, expected https")
    return text


def parse_directory(text: str) -> Directory:
    """Read a path. Raises ValueError for what no path is."""
    if not text.strip():
        raise ValueError("a path is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("a path has a control character in it")
    return text
