"""Contradictions between listeners, certificates and users: what would refuse everybody, or let in who should not.

Gives one (path, message) per finding, as `mta.config.rules`, of whose view of what was reported it makes use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from mta.config.access import Access
from mta.config.hosts import Network
from mta.config.problems import OptionPath
from mta.config.schema import Config, Listener
from mta.config.units import Size, format_size

_T = TypeVar("_T")

_ACCESS = Access()  # a default that is written out does no harm where it has no effect


class View(Protocol):
    """Which options may be compared."""

    def sound(self, *paths: OptionPath) -> bool: ...
    def items(self, path: OptionPath, items: tuple[_T, ...]) -> Iterator[tuple[int, _T]]: ...
    def first_given(self, *paths: OptionPath) -> OptionPath | None: ...


def contradictions(config: Config, view: View) -> Iterator[tuple[OptionPath, str]]:
    """What does not fit together."""
    for index, listener in view.items(("listeners",), config.listeners):
        here: OptionPath = ("listeners", index)
        if view.sound((*here, "smtp")):
            yield from _listener(config, view, here, listener)
        yield from _sizes(config, view, (*here, "limits", "message_size"), listener.limits.message_size)
    for name, user in config.users.items():
        yield from _sizes(config, view, ("users", name, "limits", "message_size"), user.limits.message_size)
        path: OptionPath = ("users", name, "labels", "pool")
        if user.labels.pool is not None and user.labels.pool not in config.pools and view.sound(path, ("pools",)):
            yield path, f"there is no pool {user.labels.pool} in pools"
    path = ("access", "check_timeout")
    if view.first_given(path) and config.access.check_timeout != _ACCESS.check_timeout \
            and config.access.check_url is None and view.sound(("access", "check_url")):
        yield path, "has no effect without access.check_url"


def _listener(config: Config, view: View, here: OptionPath, listener: Listener) -> Iterator[tuple[OptionPath, str]]:
    tls, auth = (*here, "tls"), (*here, "auth")
    if listener.smtp.is_unix:
        for name in ("relay_from", "proxy_from", "xclient_from", "client_ca", "auth_without_tls", "senders"):
            if view.first_given((*here, name)) and getattr(listener, name):
                yield (*here, name), "has no effect on a Unix socket, whose clients have no address"
        for name in ("tls", "auth"):
            if view.first_given((*here, name)) and getattr(listener, name) != "off":
                yield (*here, name), "expected off on a Unix socket: who may open it is who may send"
        return
    for name in ("mode", "group"):
        if view.first_given((*here, name)) and getattr(listener, name) not in (None, "0660"):
            yield (*here, name), "is for a Unix socket, unix:/path"
    if not view.sound(tls, auth):
        return
    if listener.tls != "off" and not config.certificates and view.sound(("certificates",)):
        yield tls, f"{listener.tls}, but there are no certificates"
    logins = config.access.users_file is not None or config.access.check_url is not None
    if listener.auth != "off":
        if not logins and listener.client_ca is None and view.sound(("access",)):
            yield auth, (f"{listener.auth}, but nobody could log in: expected access.users_file, access.check_url or "
                         "client_ca")
        if listener.tls == "off" and not listener.auth_without_tls and view.sound((*here, "auth_without_tls")):
            yield auth, (f"{listener.auth}, but without tls nobody could log in; passwords in clear need "
                         "auth_without_tls")
    elif view.first_given((*here, "auth_without_tls")) and listener.auth_without_tls:
        yield (*here, "auth_without_tls"), "has no effect, auth is off"
    for name in ("proxy_from", "xclient_from"):
        networks: Iterable[Network] = [one for _, one in view.items((*here, name), getattr(listener, name))]
        for network in networks:
            if network.prefixlen < (8 if network.version == 4 else 17):
                yield (*here, name), (f"{network} is much of the Internet, and all of it could say that it is somebody "
                                      "else; expected your own load balancers")


def _sizes(config: Config, view: View, path: OptionPath, size: Size | None) -> Iterator[tuple[OptionPath, str]]:
    if size is not None and size > config.smtp.message_size and view.sound(path, ("smtp", "message_size")):
        most = format_size(config.smtp.message_size)
        yield path, f"{format_size(size)} can never be reached, smtp.message_size is {most}"
