"""Decides on logins: asks the file of users, threads that compute hashes, or another server, and counts failures.

All of it on the hub but for what takes time. Each outcome is told with user and address (`mta.inject.incidents`), never
with a password; who is answered is not told more than that it failed. Failures are counted over all workers.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import gevent
from gevent.hub import get_hub

from mta.access import passwords
from mta.access.attempts import Attempts, Keeper
from mta.access.users import Entry, Users, UsersError, read
from mta.access.verification import Verifier
from mta.config.access import Mechanism
from mta.config.problems import printable
from mta.config.schema import Config
from mta.inject.incidents import Incidents
from mta.inject.permissions import ListenerPermissions
from mta.loop.threads import in_thread
from mta.loop.ticker import Ticker
from mta.smtp.peer import Identity, Peer
from mta.smtp.reply import Reply
from mta.smtp.sasl import Attempt, PasswordAttempt, ScramAttempt, ScramKeys, ScramProof

LOOK_S: Final = 5.0
"""How often the file of users, and certificates, are looked at for changes."""
EXTERNAL_AT_ONCE: Final = 50
_EXTERNAL_KEPT: Final = 10_000

CLOSED_ADDRESS: Final = Reply(421, "4.7.0", ("Too many failed logins, try again later",))
_CLOSED_USER: Final = Reply(454, "4.7.0", ("Too many failed logins of this user, try again later",))
_NOT_NOW: Final = Reply(454, "4.7.0", ("Temporary authentication failure",))

log = logging.getLogger(__name__)


class Keys(NamedTuple):
    """The answer to who begins with SCRAM; None: there is no such user."""

    keys: ScramKeys | None


Outcome = Identity | Keys | Reply | None
"""None is a refusal like any other, `535 5.7.8`."""


class Logins:
    """Those of one worker."""

    def __init__(self, config: Config, keeper: Keeper | None = None, incidents: Incidents | None = None, *,
                 lenient: bool = False) -> None:
        """`keeper` keeps the numbers of failures. Raises UsersError when the file of users cannot be used; `lenient`:
        then it is looked at again and again."""
        self.config = config
        self.incidents = incidents if incidents is not None else Incidents()
        self.users = Users()
        self.lacks_users = False
        """The file of users could not be used yet."""
        self.on_change: list[Callable[[], None]] = []
        """Called when there are other users."""
        self._state: tuple[int, ...] = ()
        self._complained = ""
        self._outside: OrderedDict[str, None] = OrderedDict()  # users whom the other server knows
        self._asking = 0
        access = config.access
        self._attempts = Attempts(access.failures, access.user_failures, access.failure_time, access.failure_delay,
                                  keeper)
        if access.users_file is not None:
            self._state = _state(access.users_file)
            try:
                self.users = read(access.users_file)
            except UsersError as error:
                if not lenient:
                    raise
                self.lacks_users, self._state, self._complained = True, (), str(error.problems[0])
                log.error("the file of users cannot be used: %s", self._complained)
            passwords.load()  # tens of milliseconds, better now than at the first login
        loop = get_hub().loop
        self._async = loop.async_()
        self._verifier = Verifier(self._async.send, access.threads, access.remembered)
        self._async.start(self._verifier.collect)

    def configure(self, config: Config) -> None:
        """Take other options. A file of users that cannot be read is told, and the users from before stay."""
        before, self.config = self.config.access, config
        access = config.access
        self._attempts.configure(access.failures, access.user_failures, access.failure_time, access.failure_delay)
        self._verifier.configure(access.threads, access.remembered)
        if access.users_file is None:
            self.users, self._state, self.lacks_users = Users(), (), False
        elif access.users_file != before.users_file:
            self._state = ()
        self.refresh()

    def close(self) -> None:
        """End the threads."""
        self._verifier.close()
        self._async.stop()
        self._async.close()

    def refresh(self) -> None:
        """Read the file of users again if it has changed; in a thread, as there may be many."""
        path = self.config.access.users_file
        if path is None:
            return
        state = _state(path)
        if state == self._state:
            return
        self._state = state
        gevent.spawn(self._read, path, state)

    def _read(self, path: str, state: tuple[int, ...]) -> None:
        found: Users | Exception
        try:
            found = in_thread(read, path)
        except Exception as error:  # memory may lack, and the next look tries again
            found = error
        if path != self.config.access.users_file or state != self._state:
            return  # a later one is being read
        if isinstance(found, Exception):
            what = str(found.problems[0]) if isinstance(found, UsersError) else type(found).__name__
            if what != self._complained:
                self._complained = what
                log.error("the changed file of users cannot be used, the users from before stay: %s", what)
            self._state = ()  # the next look tries again
            return
        self._complained = ""
        self.users, self.lacks_users = found, False
        log.info("%s: %d users", printable(path), len(found.entries))
        for tell in self.on_change:
            tell()

    # -- who is a user ---------------------------------------------------------------------------------------------

    def is_user(self, identity: Identity) -> bool:
        """Whether who has logged in still could. Asked at every MAIL."""
        options = self.config.users.get(identity.user)
        if options is not None and not options.enabled:
            return False
        # Who a Unix socket or a trusted host says it is need not be in the file.
        return identity.via in ("socket", "xclient") or self._is_known(identity.user)

    def _is_known(self, user: str) -> bool:
        if self._is_listed(user):
            return True
        if user not in self._outside or self.config.access.check_url is None:
            return False
        self._outside.move_to_end(user)
        return True

    def _is_listed(self, user: str) -> bool:
        """Whether it is a user of ours, not of the other server's."""
        return user in self.users.entries or (user in self.config.users and self.config.access.users_file is None)

    def by_certificate(self, names: tuple[str, ...], peer: Peer, listener: str,
                       permissions: ListenerPermissions) -> Identity | None:
        """The user whom a client's certificate names; None when it names none. Users of the other server are not meant:
        we know only those of them who came by lately."""
        for name in names:
            if self._is_listed(name):
                if why := permissions.may_log_in(name, peer.address):
                    self._tell_refusal(name, peer, listener, why)
                    return None
                self.incidents.logged_in(name, peer.address, listener, "certificate")
                return Identity(name, "certificate")
        return None

    def mechanisms(self) -> tuple[Mechanism, ...]:
        """What can be offered: SCRAM only if all who have a password can use it, as clients choose it first."""
        access = self.config.access
        passwords = access.check_url is not None or bool(self.users.hashes)
        scram = access.check_url is None and self.users.scram_for_all
        return tuple(one for one in access.mechanisms if (scram if one.startswith("SCRAM") else passwords))

    # -- attempts --------------------------------------------------------------------------------------------------

    def attempt(self, attempt: Attempt, peer: Peer, listener: str, permissions: ListenerPermissions,
                done: Callable[[Outcome], None]) -> None:
        """Decide on an attempt; `done` is called at once, or later on the hub."""
        user = attempt.user
        closed = self._closed(user, peer, listener)
        if closed is not None:
            done(closed)
        elif isinstance(attempt, ScramAttempt):
            entry = self.users.entries.get(user)
            # Of who has none it looks as of others, iterations and length of the salt included.
            done(Keys((entry.keys if entry is not None else None) or self.users.stand_in_keys(user)))
        elif isinstance(attempt, ScramProof):
            why = "" if attempt.valid else self._why_wrong(user)
            self._decide(Identity(user, "scram"), attempt.authorize_as, peer, listener, permissions, why, done)
        else:
            self._check_password(attempt, peer, listener, permissions, done)

    def _closed(self, user: str, peer: Peer, listener: str) -> Reply | None:
        """The refusal when too many logins have failed for this one to be looked at."""
        now_s = time.monotonic()
        if self._attempts.address_is_closed(peer.address, now_s):
            self._tell_refusal(user, peer, listener, "too many failures from this address")
            return CLOSED_ADDRESS
        if self._attempts.user_is_closed(user, peer.address, now_s):
            self._tell_refusal(user, peer, listener, "too many failures of this user")
            return _CLOSED_USER
        return None

    def _why_wrong(self, user: str) -> str:
        return "wrong password" if user in self.users.entries else "no such user"

    def _check_password(self, attempt: PasswordAttempt, peer: Peer, listener: str, permissions: ListenerPermissions,
                        done: Callable[[Outcome], None]) -> None:
        user = attempt.user

        def wanted() -> bool:
            now_s = time.monotonic()
            return not (self._attempts.address_is_closed(peer.address, now_s)
                        or self._attempts.user_is_closed(user, peer.address, now_s))

        def answered(right: bool | None) -> None:
            if (closed := self._closed(user, peer, listener)) is not None:  # by those before it, or at the same time
                done(closed)
            elif right is None:
                self._tell_refusal(user, peer, listener, "the password cannot be checked now")
                done(_NOT_NOW)
            else:
                self._decide(Identity(user, "password"), attempt.authorize_as, peer, listener, permissions,
                             "" if right else self._why_wrong(user), done)

        entry: Entry | None = self.users.entries.get(user)
        if entry is None and self.config.access.check_url is not None:
            self._ask(attempt, peer, listener, answered)
        else:
            stored = entry.hash if entry is not None else ""
            self._verifier.verify(user, attempt.password, stored, answered, stand_in=self.users.stand_in(user),
                                  wanted=wanted)

    def _ask(self, attempt: PasswordAttempt, peer: Peer, listener: str,
             answered: Callable[[bool | None], None]) -> None:
        if self._asking >= EXTERNAL_AT_ONCE:
            answered(None)
            return
        self._asking += 1
        gevent.spawn(self._ask_and_wait, attempt, peer, listener, answered)

    def _ask_and_wait(self, attempt: PasswordAttempt, peer: Peer, listener: str,
                      answered: Callable[[bool | None], None]) -> None:
        from mta.access import external  # who does not ask does without an HTTP client

        access = self.config.access
        assert access.check_url is not None
        right: bool | None = None
        try:
            with gevent.Timeout(access.check_timeout, external.UnknownError("no answer in time")):
                context = None
                if access.check_url.startswith("https:"):
                    context = in_thread(external.authorities)
                right = external.ask(access.check_url, attempt.user, attempt.password, peer.address, listener,
                                     access.check_timeout, context)
        except external.UnknownError as error:
            log.error("%s does not say whether a password is right: %s", printable(access.check_url), error)
        except Exception:
            log.exception("bug: asking about a password")
        finally:
            self._asking -= 1
        if right:
            self._outside[attempt.user] = None
            self._outside.move_to_end(attempt.user)
            if len(self._outside) > _EXTERNAL_KEPT:
                self._outside.popitem(last=False)
        # A wrong password says nothing of sessions that have begun with a right one: anybody can try one.
        answered(right)

    def _decide(self, identity: Identity, authorize_as: str, peer: Peer, listener: str,
                permissions: ListenerPermissions, why: str, done: Callable[[Outcome], None]) -> None:
        if not why and authorize_as:
            why = "it wants to act for another user"
        why = why or permissions.may_log_in(identity.user, peer.address)
        if not why:
            self._attempts.succeeded(identity.user, peer.address, time.monotonic())
            self.incidents.logged_in(identity.user, peer.address, listener, identity.via)
            done(identity)
            return
        self._tell_refusal(identity.user, peer, listener, why)
        delay_s = self._attempts.failed(identity.user, peer.address, time.monotonic())
        if not delay_s:
            done(None)
            return
        timer = get_hub().loop.timer(delay_s)

        def answer() -> None:
            timer.close()
            done(None)

        timer.start(answer)

    def _tell_refusal(self, user: str, peer: Peer, listener: str, why: str) -> None:
        self.incidents.refused("login", peer.address, listener, why, user=user, level=logging.WARNING)


def _state(path: str) -> tuple[int, ...]:
    """What tells one state of the file from another."""
    try:
        status = os.stat(path)
    except OSError:
        return (0,)
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


class Watch(Ticker):
    """Looks now and then whether files have changed."""

    def __init__(self, *looks: Callable[[], Any]) -> None:
        super().__init__(LOOK_S)
        self._looks = looks

    def look(self) -> None:
        """Called by the timer."""
        for look in self._looks:
            try:
                look()
            except Exception:
                log.exception("bug: looking for changed files")
