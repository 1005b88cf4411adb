"""The sendmail-compatible command."""

from mta.sendmail.command import main

__all__ = ["main"]
