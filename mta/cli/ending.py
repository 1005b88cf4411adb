"""`mta retry`, `expire`, `delete`: something is done to all mail that matches, once."""

from __future__ import annotations

import argparse

from mta.cli.options import add_parser
from mta.cli.ordering import FILTER_HELP, add_filter, add_giving, expression_of, give

_HOW = """\
It is about mail that was accepted before the order. From the moment that the command returns none of it is tried, but
for what is being delivered just then; the queue is gone through in the background, also after a restart: `mta orders`
shows how far it is."""

_RETRY = f"""\
Try mail now that waits for its retry time. What is paused stays so, and so do suspended paths; with `--now` paths that
stand still because their site failed get another chance at once. `mta orders` shows how far it is.

{FILTER_HELP}"""

_RETRY_EXAMPLES = """\
  mta retry domain=example.org
  mta retry --domain example.org --now
  mta retry 'reply~4\\.7\\.1 and attempts<3'"""

_EXPIRE = f"""\
Give mail up now, as if it had become older than `expires`: senders get a notification. {_HOW}

{FILTER_HELP}"""

_EXPIRE_EXAMPLES = """\
  mta expire 'domain=example.org and age>1d'
  mta expire --campaign spring-sale --dry-run"""

_DELETE = f"""\
Take mail out of the queue. Senders hear nothing of it, unless with `--notify`. {_HOW}

{FILTER_HELP}"""

_DELETE_EXAMPLES = """\
  mta delete 'tenant=acme and age>2d and not campaign=welcome' --reason 'sent twice'
  mta delete message=01hq3z8k2v4x0 --yes
  mta delete --sender @example.com --notify"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    retry = add_parser(commands, "retry", "try mail now", _RETRY, _RETRY_EXAMPLES)
    add_filter(retry)
    retry.add_argument("--now", action="store_true", help="also where a path stands still because its site failed")
    add_giving(retry, lasting=False)
    retry.set_defaults(run=run_retry)
    expire = add_parser(commands, "expire", "give mail up now", _EXPIRE, _EXPIRE_EXAMPLES)
    add_filter(expire)
    add_giving(expire, lasting=False)
    expire.set_defaults(run=run_expire)
    delete = add_parser(commands, "delete", "take mail out of the queue", _DELETE, _DELETE_EXAMPLES)
    add_filter(delete)
    delete.add_argument("--notify", action="store_true", help="senders get a notification")
    add_giving(delete, lasting=False)
    delete.set_defaults(run=run_delete)


def run_retry(options: argparse.Namespace) -> int:
    """Retry."""
    return give(options, "retry", "is due now", filter=expression_of(options), now=options.now)


def run_expire(options: argparse.Namespace) -> int:
    """Expire."""
    return give(options, "expire", "is being given up", filter=expression_of(options))


def run_delete(options: argparse.Namespace) -> int:
    """Delete."""
    return give(options, "delete", "is being deleted", filter=expression_of(options), notify=options.notify)
