"""Asks somebody else by HTTP whether a password is right (`access.check_url`).

    POST /smtp HTTP/1.1
    Content-Type: application/json

    {"user": "acme", "password": "...", "client": "192.0.2.7", "listener": "0.0.0.0:587"}

200 or 204 is yes, 401 and 403 are no; everything else, redirects included, and no answer, is "not now". The body of the
answer is not read. It waits on its socket, so it is for a greenlet or a thread; secrets are in no exception.
"""

from __future__ import annotations

import functools
import http.client
import json
import ssl
from typing import Final
from urllib.parse import urlsplit

_YES: Final = (200, 204)
_NO: Final = (401, 403)


class UnknownError(Exception):
    """Whether the password is right could not be found out; the text says why."""


@functools.cache
def authorities() -> ssl.SSLContext:
    """A context that believes the authorities of this system. 20 to 50 ms the first time: for a thread."""
    return ssl.create_default_context()


def ask(url: str, user: str, password: str, client: str, listener: str, timeout_s: float,
        context: ssl.SSLContext | None = None) -> bool:
    """Whether the password is right. Raises UnknownError."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    body = json.dumps({"user": user, "password": password, "client": client, "listener": listener})
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, body.encode(), {"Content-Type": "application/json", "Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise UnknownError(f"{type(error).__name__}: {str(error)[:200]}") from None
    finally:
        connection.close()
    if status in _YES:
        return True
    if status in _NO:
        return False
    raise UnknownError(f"it answered {status}")
