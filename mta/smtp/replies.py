"""What the server machine answers, as it goes over the wire."""

from __future__ import annotations

from mta.smtp.reply import Reply


def reply(code: int, enhanced: str, *lines: str) -> bytes:
    """A reply as bytes."""
    return Reply(code, enhanced, lines).to_bytes()


OK = reply(250, "2.0.0", "Ok")
SENDER_OK = reply(250, "2.1.0", "Ok")
RECIPIENT_OK = reply(250, "2.1.5", "Ok")
START_MAIL = reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE = reply(221, "2.0.0", "Bye")
NOT_VERIFIED = reply(252, "2.5.0", "Not verified; send the message and see")
UNKNOWN = reply(500, "5.5.1", "Unknown command")
NOT_HERE = reply(502, "5.5.1", "Not available")
LINE_TOO_LONG = reply(500, "5.5.2", "Line too long")
NO_ARGUMENT = reply(501, "5.5.4", "No argument allowed")
NEEDS_ARGUMENT = reply(501, "5.5.4", "An argument is needed")
BAD_HELO = reply(501, "", "A host name or address literal is needed")
MAIL_SYNTAX = reply(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
RCPT_SYNTAX = reply(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters]")
EHLO_FIRST = reply(503, "5.5.1", "Send EHLO or HELO first")
NESTED = reply(503, "5.5.1", "A transaction is open; send RSET first")
MAIL_FIRST = reply(503, "5.5.1", "Send MAIL first")
NO_RECIPIENT = reply(554, "5.5.1", "No valid recipients")
NO_MEMORY = reply(452, "4.3.1", "Too much mail is being received at once, try again later")
TOO_MANY_RECIPIENTS = reply(452, "4.5.3", "Too many recipients")
NEEDS_SMTPUTF8 = reply(553, "5.6.7", "An address beyond ASCII needs SMTPUTF8")
TOO_BIG = reply(552, "5.3.4", "The message is too big")
TOO_MANY_ERRORS = reply(421, "4.7.0", "Too many errors")
TOO_MANY_COMMANDS = reply(421, "4.7.0", "Too many commands without a message")
LINE_WITHOUT_END = reply(421, "4.7.0", "Line too long")
BARE_LF = reply(521, "5.5.2", "Bare line feed; lines end with CR LF")
OUT_OF_TURN = reply(554, "5.5.0", "Input before the reply to the last command; see RFC 2920 3.1")
NOT_HTTP = reply(521, "5.5.1", "This is SMTP")

# STARTTLS, RFC 3207 4
START_TLS = reply(220, "2.0.0", "Ready to start TLS")
TLS_ALREADY = reply(503, "5.5.1", "TLS is active already")

# AUTH, RFC 4954 4 and 6
AUTHENTICATED = reply(235, "2.7.0", "Authentication successful")
AUTH_REFUSED = reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_SYNTAX = reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
AUTH_NEEDS_EHLO = reply(503, "5.5.1", "Send EHLO first")
AUTH_NEEDS_TLS = reply(538, "5.7.11", "Encryption is required for authentication; use STARTTLS")
AUTH_UNKNOWN = reply(504, "5.5.4", "Unknown authentication mechanism")
AUTH_ALREADY = reply(503, "5.5.1", "Already authenticated")
AUTH_CANCELLED = reply(501, "5.7.0", "Authentication cancelled")
AUTH_TOO_LONG = reply(500, "5.5.6", "Authentication exchange line is too long")
TOO_MANY_LOGINS = reply(421, "4.7.0", "Too many failed logins")
IN_TRANSACTION = reply(503, "5.5.1", "Not within a transaction; send RSET first")

# BDAT, RFC 3030 2
CHUNK_TAKEN = reply(250, "2.0.0", "Chunk taken")
BDAT_SYNTAX = reply(521, "5.5.4", "Syntax: BDAT size [LAST]; what follows cannot be told from commands")
CHUNKS_ONLY = reply(503, "5.5.1", "The message has begun with BDAT; go on with BDAT")
BINARY_NEEDS_BDAT = reply(503, "5.5.1", "BODY=BINARYMIME needs BDAT")

# XCLIENT, of Postfix
XCLIENT_REFUSED = reply(550, "5.7.0", "Not authorized to use XCLIENT")


def bad_response(why: str) -> bytes:
    """A response of AUTH that is not what it must be."""
    return reply(501, "5.5.2", f"Bad authentication response: {why}")


def bad_content(why: str) -> bytes:
    """Content that no host should be given."""
    return reply(550, "5.6.0", why)


def bad_address(enhanced: str, why: str) -> bytes:
    """An address that is none."""
    return reply(501, enhanced, why)


def bad_xclient(why: str) -> bytes:
    """An attribute of XCLIENT that is wrong."""
    return reply(501, "5.5.4", f"XCLIENT: {why}")
