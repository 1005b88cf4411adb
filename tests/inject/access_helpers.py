"""What the tests of TLS and logins share: certificates, a file of users, a listener's configuration."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import trustme

from mta.access.users import Entry, change, entry_of

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@dataclass
class Pki:
    """An authority, and certificates of it on disk."""

    authority: trustme.CA
    directory: Path

    def make(self, *names: str, file: str = "", **options: Any) -> str:
        """A certificate with its key in one file: the path."""
        path = self.directory / f"{file or names[0].replace('*', 'any')}.pem"
        made = self.authority.issue_cert(*names, **options)
        new = path.with_suffix(".new")
        new.write_bytes(made.private_key_and_cert_chain_pem.bytes())
        new.rename(path)
        return str(path)

    @property
    def ca_file(self) -> str:
        """The authority's own certificate."""
        path = self.directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(path))
        return str(path)

    def context(self, certificate: str = "") -> ssl.SSLContext:
        """A client's context, which believes the authority and may have a certificate."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate:
            context.load_cert_chain(certificate)
        return context


def make_pki(directory: Path) -> Pki:
    """A new authority."""
    return Pki(trustme.CA(key_type=trustme.KeyType.ECDSA), directory)


def make_users(path: Path, **passwords: str) -> str:
    """A file of users with cheap hashes and keys of SCRAM; a user with an empty password has a certificate only."""
    def add(entries: dict[str, Entry]) -> None:
        for name, password in passwords.items():
            keys = entry_of(password).keys if password else None
            entries[name] = Entry(CHEAP.hash(password) if password else "", keys)
    change(str(path), add)
    return str(path)


def configuration(listener: dict[str, Any], **options: Any) -> str:
    """A configuration with one listener, as text that YAML reads."""
    listener = {"smtp": "127.0.0.1:0", **listener}
    access = {"failure_delay": 0, **options.pop("access", {})}
    return json.dumps({"hostname": "mx.example.net", "listeners": [listener], "access": access, **options})
