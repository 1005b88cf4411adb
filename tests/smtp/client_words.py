"""What the tests of the client machine expect it to say, and what a host answers."""

from __future__ import annotations

from tests.smtp.helpers import CONTENT

MAIL = b"MAIL FROM:<a@example.com> SIZE=%d\r\n" % len(CONTENT)
RCPT = b"RCPT TO:<b@example.org>\r\n"
DATA = b"DATA\r\n"
TAKEN = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go\r\n"
