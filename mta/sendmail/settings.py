"""Where the sendmail command puts mail, and what it has to know of the MTA that takes it from there.

The directory is `$MTA_PICKUP`; else the first of `pickup` in the configuration; else, where the configuration is not
for everybody to read, the usual one. Name and limits are in its `.settings`, which the MTA writes: so they are known
while it is down, and to users who may not see the configuration.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mta.control import exits

DEFAULT_CONFIG: Final = "/etc/mta/mta.yaml"
DEFAULT_DIRECTORY: Final = "/var/spool/mta-pickup"
_LARGEST: Final = 65_536  # octets of `.settings`


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits are those of `smtp` in the configuration, here with its defaults. What stands behind them is of
    `checks`, as far as that refuses whatever comes: 0, nothing and False are what the MTA did not tell."""

    directory: str
    hostname: str
    message_size: int = 50_000_000
    recipients: int = 1000
    line_length: int = 998
    command_length: int = 2048
    header_size: int = 0
    field_size: int = 0
    fields: int = 0
    repeated: bool = False  # fields that may be there once
    from_domains: tuple[str, ...] = ()


def find(config: str | None, environment: Mapping[str, str]) -> Settings:
    """The settings that hold for us; `config` is the file that the command line names. Raises OperatorError."""
    directory = environment.get("MTA_PICKUP", "")
    hostname = ""
    if not directory:
        directory, hostname = _configured(config or environment.get("MTA_CONFIG") or DEFAULT_CONFIG, config is not None)
    settings = Settings(directory, hostname)
    published = _published(directory)
    limits = _numbers(published, "message_size", "recipients", "line_length", "command_length")
    refused = published.get("refused")
    if isinstance(refused, dict):
        limits |= _numbers(refused, "header_size", "field_size", "fields")
        domains = refused.get("from_domains")
        if isinstance(domains, list) and all(isinstance(one, str) for one in domains):
            settings = replace(settings, from_domains=tuple(domains))
        settings = replace(settings, repeated=refused.get("repeated") is True)
    settings = replace(settings, **limits)
    name = published.get("hostname")
    if isinstance(name, str) and name:
        return replace(settings, hostname=name)
    return settings if hostname else replace(settings, hostname=_name_of_this_host())


def _numbers(published: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: published[name] for name in names if isinstance(published.get(name), int) and published[name] > 0}


def _configured(path: str, is_named: bool) -> tuple[str, str]:
    """Directory and host name in the configuration. It may have errors elsewhere: they keep no mail from being sent."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        if not is_named and os.path.isdir(DEFAULT_DIRECTORY):
            return DEFAULT_DIRECTORY, ""
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise exits.OperatorError(
            exits.CONFIG, f"{path}: {what}; MTA_PICKUP=DIRECTORY names the pickup directory without it"
        ) from None
    import yaml  # here, because it takes longer to load than all the rest

    try:
        tree: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        # Not its own words: they might quote a file that the user may read and others should not see.
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise exits.OperatorError(exits.CONFIG, f"{path}{where}: not YAML; `mta check` has more") from None
    pickup = tree.get("pickup") if isinstance(tree, dict) else None
    first = pickup[0] if isinstance(pickup, list) and pickup else None
    directory = first.get("directory") if isinstance(first, dict) else None
    if not (isinstance(directory, str) and directory):
        raise exits.OperatorError(exits.CONFIG, f"{path} has no directory in `pickup`: that is where mail is put")
    hostname = tree.get("hostname")
    directory = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(directory))
    return directory, hostname if isinstance(hostname, str) else ""


def _published(directory: str) -> dict[str, Any]:
    """What the MTA says in `.settings`; nothing if somebody else wrote that."""
    try:
        owner = os.stat(directory).st_uid
        descriptor = os.open(
            os.path.join(directory, ".settings"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (owner, 0) or status.st_size > _LARGEST:
                return {}
            found = json.loads(file.read(_LARGEST))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name_of_this_host() -> str:
    try:
        with open("/etc/mailname", encoding="ascii") as file:  # Debian's
            name = file.readline().strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    return name or socket.gethostname()
