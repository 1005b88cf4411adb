"""`mta user`: who may log in. Works on the file of users alone, with the MTA running or not."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import sys

from mta.access.users import Entry, UsersError, change, entry_of, read
from mta.cli.options import add_config, add_json, add_parser, load_config
from mta.cli.text import printable
from mta.config.forms import parse_user_name
from mta.control.exits import CANNOT_CREATE, CONFIG, DATA, NO_PERMISSION, OK, USAGE, OperatorError

_DESCRIPTION = """\
Add users, change their passwords, list and remove them, in the file that `access.users_file` names. A running MTA
takes up the change within some seconds; who is removed can send nothing more, also in a session that has begun.

What is stored is a hash (argon2id), and keys for SCRAM-SHA-256; no password can be read from it. What a user may send
is in the configuration, `users.NAME`. Exit codes: 0 done, 65 there is no such user, or one already, or the file has an
error, 78 no file is configured."""

_EXAMPLES = """\
  mta user add acme                       asks for the password, twice
  mta user add acme --generate            makes one and prints it
  pass show mail/acme | mta user passwd acme --stdin
  mta user add host7.example.net --no-password     logs in by a client certificate with this name
  mta user list
  mta user remove acme"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "user", "add, change, list and remove who may log in", _DESCRIPTION, _EXAMPLES)
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for name, summary in (("add", "add a user"), ("passwd", "change the password of a user"),
                          ("remove", "remove a user"), ("list", "list the users, and how they can log in")):
        action = actions.add_parser(name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False)
        add_config(action)
        action.add_argument("--file", metavar="FILE", help="the file of users, instead of the configured one")
        if name == "list":
            add_json(action, "one JSON object per user: user, kinds")
        else:
            action.add_argument("user", metavar="NAME", help="name of the user")
        if name in ("add", "passwd"):
            how = action.add_mutually_exclusive_group()
            how.add_argument("--stdin", action="store_true", help="read the password from standard input, one line")
            how.add_argument("--generate", action="store_true", help="make a password and print it")
            how.add_argument("--no-password", action="store_true", help="a client certificate alone is the login")
        action.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    path = options.file or _configured(options.config)
    try:
        if options.action == "list":
            _list(path, as_json=options.json)
        else:
            _change(path, options)
    except UsersError as error:
        raise OperatorError(DATA, str(error.problems[0])) from None
    except PermissionError as error:
        raise OperatorError(NO_PERMISSION, f"{path}: {error.strerror}") from None
    except OSError as error:
        raise OperatorError(CANNOT_CREATE, f"{path}: {error.strerror}") from None
    return OK


def _configured(config: str) -> str:
    path = load_config(config).access.users_file
    if path is None:
        raise OperatorError(CONFIG, "no file of users is configured: set access.users_file, or name one by --file")
    return path


def _list(path: str, *, as_json: bool) -> None:
    for name, entry in read(path).entries.items():
        print(json.dumps({"user": name, "kinds": entry.kinds}) if as_json else f"{name}\t{entry.kinds}")


def _change(path: str, options: argparse.Namespace) -> None:
    try:
        name = parse_user_name(options.user)
    except ValueError as error:
        raise OperatorError(USAGE, f"{printable(options.user)}: {error}") from None
    entries = read(path).entries if os.path.exists(path) else {}
    _check(options.action, name, name in entries)
    entry = Entry() if options.action == "remove" else _new_entry(options)

    def edit(found: dict[str, Entry]) -> None:
        _check(options.action, name, name in found)  # somebody else may have been faster
        if options.action == "remove":
            del found[name]
        else:
            found[name] = entry

    change(path, edit)


def _check(action: str, name: str, exists: bool) -> None:
    if action == "add" and exists:
        raise OperatorError(DATA, f"there is a user {name} already: `mta user passwd {name}` changes the password")
    if action != "add" and not exists:
        raise OperatorError(DATA, f"there is no user {name}")


def _new_entry(options: argparse.Namespace) -> Entry:
    if options.no_password:
        return Entry()
    try:
        if options.generate:
            password = secrets.token_urlsafe(18)
            print(password)
        elif options.stdin:
            password = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
        else:
            password = getpass.getpass(f"Password of {options.user}: ")
            if getpass.getpass("Once more: ") != password:
                raise OperatorError(DATA, "the two are not the same")
        return entry_of(password)
    except ValueError as error:
        raise OperatorError(DATA, str(error)) from None
