"""Options on who may send: how they are read, and what of them contradicts each other."""

from __future__ import annotations

import pytest

from mta.config.forms import parse_http_url, parse_sender_pattern, parse_user_name
from mta.config.hosts import Endpoint
from mta.config.loader import loads
from tests.config.helpers import HOSTNAME, problems_after_hostname

CERTIFICATES = "certificates: {certificate: a.pem}\naccess: {users_file: users}\n"


def test_a_listener_on_a_unix_socket() -> None:
    """`unix:/path` is a listener whose clients are known by the mode of the socket."""
    listener = loads(HOSTNAME + "listeners: [{smtp: 'unix:/run/mta/smtp', mode: 0600, group: www}]").listeners[0]
    assert listener.smtp == Endpoint("/run/mta/smtp", 0)
    assert (str(listener.smtp), listener.mode, listener.group) == ("unix:/run/mta/smtp", "0600", "www")


def test_submission() -> None:
    """Ports 587 and 465 are two options each; rights of users stand beside them."""
    config = loads(HOSTNAME + CERTIFICATES + """
listeners: [{smtp: 0.0.0.0:587, tls: required, auth: required}, {smtp: 0.0.0.0:465, tls: implicit, auth: required}]
users: {acme: {senders: [Acme.example, '*.acme.example', News@ACME.example], limits: {messages: [1000/h, 9000/d]}}}
""")
    assert [(one.tls, one.auth) for one in config.listeners] == [("required", "required"), ("implicit", "required")]
    assert config.users["acme"].senders == ("acme.example", "*.acme.example", "News@acme.example")
    assert [(rate.count, rate.per_s) for rate in config.users["acme"].limits.messages] == [(1000, 3600), (9000, 86_400)]


@pytest.mark.parametrize(("text", "message"), [
    ("listeners: [{smtp: 'unix:relative'}]", "a Unix socket has an absolute path of at most 107 bytes"),
    (f"listeners: [{{smtp: 'unix:/{'x' * 107}'}}]", "a Unix socket has an absolute path of at most 107 bytes"),
    ("listeners: [{smtp: 'unix:/a'}, {smtp: 'unix:/a'}]", "unix:/a is taken already by listeners[0], unix:/a"),
    ("listeners: [{smtp: 'unix:/a', relay_from: 10.0.0.0/8}]",
     "2:43: listeners[0].relay_from: has no effect on a Unix socket, whose clients have no address"),
    ("listeners: [{smtp: 'unix:/a', auth: required}]", "listeners[0].auth: expected off on a Unix socket"),
    ("listeners: [{smtp: 127.0.0.1:25, mode: 0666}]", "listeners[0].mode: is for a Unix socket, unix:/path"),
    ("listeners: [{smtp: 127.0.0.1:25, tls: offered}]",
     "2:39: listeners[0].tls: offered, but there are no certificates"),
    ("listeners: [{smtp: 127.0.0.1:25, auth: required, auth_without_tls: yes}]",
     "2:40: listeners[0].auth: required, but nobody could log in: expected access.users_file, access.check_url or"),
    (CERTIFICATES + "listeners: [{smtp: 127.0.0.1:25, auth: offered}]",
     "listeners[0].auth: offered, but without tls nobody could log in; passwords in clear need auth_without_tls"),
    ("listeners: [{smtp: 127.0.0.1:25, auth_without_tls: yes}]", "has no effect, auth is off"),
    ("listeners: [{smtp: 127.0.0.1:25, proxy_from: [0.0.0.0/0]}]",
     "listeners[0].proxy_from: 0.0.0.0/0 is much of the Internet"),
    ("listeners: [{smtp: 127.0.0.1:25, xclient_from: ['::/0']}]", "listeners[0].xclient_from: ::/0 is much of the"),
    ("listeners: [{smtp: 127.0.0.1:25, limits: {message_size: 1GB}}]",
     "listeners[0].limits.message_size: 1GB can never be reached, smtp.message_size is 50MB"),
    ("users: {acme: {labels: {pool: p}}}", "users.acme.labels.pool: there is no pool p in pools"),
    ("users: {acme: {limits: {messages: 1/500ms}}}", "expected a number in a period of whole seconds"),
    ("users: {'a b': {}}", "a user has 1 to 128 visible ASCII characters without a colon"),
    ("users: {acme: {senders: ['a b@example.org']}}", "not a mailbox such as news@example.org, a domain, or"),
    ("access: {check_url: 'http://auth.example.net/'}", "access.check_url: \"http://auth.example.net/\": passwords go"),
    ("access: {mechanisms: [CRAM-MD5]}", 'access.mechanisms[0]: "CRAM-MD5", expected SCRAM-SHA-256-PLUS, SCRAM-SHA'),
    ("access: {check_timeout: 3s}", "access.check_timeout: has no effect without access.check_url"),
])
def test_what_does_not_fit(text: str, message: str) -> None:
    """What would refuse everybody, or let in who should not, is an error with its place."""
    found = problems_after_hostname(text)
    assert any(message in problem for problem in found), found


def test_values_are_kept_in_one_form() -> None:
    """Domains of senders are lower case and A-labels; local parts are kept."""
    assert parse_sender_pattern("Bücher.example") == "xn--bcher-kva.example"
    assert parse_sender_pattern("*.EXAMPLE.org") == "*.example.org"
    assert parse_http_url("http://127.0.0.1:8080/x") == "http://127.0.0.1:8080/x"
    assert parse_user_name("bob@example.org") == "bob@example.org"
    for wrong in ("", "*secret", "#x", "a:b", "ä", "a" * 129):
        with pytest.raises(ValueError, match="a user has"):
            parse_user_name(wrong)
    for wrong in ("ftp://a/", "https://", "https://u:p@a/", "https://a:99999/", "https://a b/", "http://10.0.0.1/"):
        with pytest.raises(ValueError, match=r"URL|passwords"):
            parse_http_url(wrong)
