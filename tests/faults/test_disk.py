"""A real `mta run` on a disk that is full, or fails: mail is refused or waits, what was accepted goes on, and all of it
recovers by itself when the disk does. The store alone under the same, call by call: tests/queue/test_disk_faults.py."""

from __future__ import annotations

import errno
import os
import random
import signal
import smtplib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta.queue.verify import verify_spool
from mta.sandbox.client import Sandbox
from tests.faults.books import assert_balanced, assert_no_bug, queued, rows
from tests.faults.diskshim import TAKES_SPACE, Kind, Shim, build, compiler
from tests.integration.support import Injector, Mta, message

ROUNDS = int(os.environ.get("MTA_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("MTA_FAULT_SEED", "0")) or random.randrange(1, 1 << 30)
PATIENCE_S = 60.0
DISK = 64_000_000
DOMAINS = [f"d{number}.test" for number in range(10)]
STORE = {"store": {"segment_size": "4MB", "reserve": "1MB"}}

ERRORS: dict[str, tuple[Kind, int]] = {
    "sync-eio": (Kind.SYNC, errno.EIO),
    "write-eio": (Kind.WRITE, errno.EIO),
    "write-enospc": (Kind.WRITE | Kind.ALLOCATE | Kind.CREATE, errno.ENOSPC),
    "read-eio": (Kind.READ, errno.EIO),
    "open-enfile": (Kind.OPEN | Kind.CREATE, errno.ENFILE),
    "open-enomem": (Kind.OPEN | Kind.CREATE, errno.ENOMEM),
    "rename-unlink-eio": (Kind.RENAME | Kind.UNLINK, errno.EIO),
    "read-only": (~Kind.READ, errno.EROFS),
}


KINDS = len(ERRORS) if ROUNDS > 1 else 4  # in one round


@pytest.fixture
def disk(request: pytest.FixtureRequest, directory: Path) -> Iterator[Path]:
    """A small file system for the spool alone; `param` are further options of tmpfs."""
    path = directory / "mta" / "spool"
    path.mkdir(parents=True)
    options = f"size={DISK},mode=700,{request.param}"
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
                                          capture_output=True).returncode != 0:
        pytest.skip("needs root, and to be allowed to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill_bytes(disk: Path) -> None:
    """Take the last byte."""
    (disk / "ballast").mkdir()
    until_full(lambda number: (disk / "ballast" / str(number)).write_bytes(bytes(1 << 16)))


def fill_inodes(disk: Path) -> None:
    """Take the last inode."""
    (disk / "ballast").mkdir()
    until_full(lambda number: (disk / "ballast" / str(number)).touch())


def until_full(take: Callable[[int], object]) -> None:
    """Call it until the disk gives no more."""
    try:
        for number in range(1 << 20):
            take(number)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def refusal(mta: Mta) -> tuple[int, bytes] | None:
    """What MAIL is answered when that is a refusal."""
    with smtplib.SMTP(*mta.smtp, timeout=30) as client:
        client.ehlo()
        code, text = client.mail("a@x.test")
    return None if code == 250 else (code, text)


@pytest.mark.parametrize(("disk", "fill"), [("nr_inodes=100k", fill_bytes), ("nr_inodes=1500", fill_inodes)],
                         indirect=["disk"], ids=["bytes", "inodes"])
def test_a_full_disk(disk: Path, fill: Callable[[Path], None], directory: Path, sandbox: Sandbox) -> None:
    """452 4.3.1 to MAIL, spool files wait where they are, what is queued is delivered; when there is room again mail
    and files are taken by themselves, and nothing is sent twice. `mta status` says why, and the log as an error."""
    sandbox.set("later.test", {"listening": False})
    mta = Mta(directory / "mta", sandbox.dns, sandbox.smtp_port, workers=1,
              pickup=[{"directory": str(directory / "pickup")}], **STORE)
    sent = iter(range(1 << 30))
    accepted: set[int] = set()

    def send(domain: str, count: int) -> None:
        for number, _ in zip(sent, range(count), strict=False):
            mta.send("", [f"u@{domain}"], message(number, f"u@{domain}", 5000))
            accepted.add(number)

    with mta:
        for _ in range(ROUNDS):
            send("later.test", 100)
            send("now.test", 10)
            mta.wait_until(lambda: queued(mta) == 100, "mail that waits", PATIENCE_S)
            assert rows(mta)["later.test"].deliveries == 100  # so they are in the index, and are read from there
            fill(disk)
            mta.wait_until(lambda: refusal(mta) is not None, "a refusal", PATIENCE_S)
            said = refusal(mta)
            assert said is not None
            assert said[0] == 452
            assert said[1].startswith(b"4.3.1 Insufficient system storage")
            assert mta.status()["workers"][0]["intake"]
            mta.wait_until(lambda: any("error worker-0: new mail is refused: " in one for one in mta.log), "an error")
            number = next(sent)
            path = directory / "pickup" / "tmp" / f"{number}.eml"
            path.write_bytes(b"X-Sender: a@x.test\r\nX-Receiver: u@now.test\r\n" + message(number, "u@now.test"))
            path.rename(directory / "pickup" / path.name)
            accepted.add(number)

            before = sandbox.stats()["distinct"]
            sandbox.set("later.test", {})
            sandbox.wait_for(lambda stats, before=before: bool(stats["distinct"] == before + 100), PATIENCE_S)
            assert refusal(mta) is not None
            assert (directory / "pickup" / path.name).exists()

            subprocess.run(["rm", "-r", str(disk / "ballast")], check=True)
            mta.wait_until(lambda: refusal(mta) is None, "that mail is taken", PATIENCE_S)
            send("now.test", 10)
            mta.wait_until(lambda: queued(mta) == 0 and sandbox.stats()["distinct"] == len(accepted),
                           "that all is delivered, the file too", PATIENCE_S)
            sandbox.set("later.test", {"listening": False})
    assert list((directory / "pickup" / "failed").iterdir()) == []
    assert_balanced(mta, accepted, sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(disk) == []


@pytest.mark.parametrize("disk", ["nr_inodes=100k"], indirect=True)
def test_a_disk_that_is_full_before_the_index_has_it(disk: Path, directory: Path, sandbox: Sandbox) -> None:
    """Mail that left memory just before the disk got full is in the journal alone, as the index cannot be written. It
    is tried all the same, and what is deferred then is tried again; nothing is sent twice, nothing is lost."""
    sandbox.set("later.test", {"listening": False})
    sandbox.set("grey.test", {"rules": [{"at": "rcpt", "reply": "451 4.3.0 later"}]})
    mta = Mta(directory / "mta", sandbox.dns, sandbox.smtp_port, workers=1,
              store={**STORE["store"], "checkpoint": "1h"})  # unless something asks for one
    with mta:
        for number in range(200):
            to = f"u@{'later' if number % 2 else 'grey'}.test"
            mta.send("a@x.test", [to], message(number, to, 5000))
        mta.wait_until(lambda: sum(event["event"] == "deferred" for event in mta.events()) >= 100, "first attempts")
        fill_bytes(disk)
        rows(mta)  # asks for one
        mta.wait_until(lambda: any("the index cannot be written" in line for line in mta.log), "a failing checkpoint")
        sandbox.set("later.test", {})
        sandbox.wait_for(lambda stats: bool(stats["distinct"] == 100), PATIENCE_S)
        sandbox.set("grey.test", {})
        sandbox.wait_for(lambda stats: bool(stats["distinct"] == 200), PATIENCE_S)
        assert refusal(mta) is not None
        subprocess.run(["rm", "-r", str(disk / "ballast")], check=True)
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
    assert_balanced(mta, set(range(200)), sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(disk) == []


@pytest.mark.parametrize("disk", ["nr_inodes=100k"], indirect=True)
def test_a_disk_that_our_own_mail_has_filled(disk: Path, directory: Path, sandbox: Sandbox) -> None:
    """Whatever `store.reserve` says, room is left to write down what becomes of the mail: the queue gets empty without
    help, and mail is taken again."""
    sandbox.set("later.test", {"listening": False})
    mta = Mta(directory / "mta", sandbox.dns, sandbox.smtp_port, workers=2,
              store={"segment_size": "2MB", "reserve": "0B"})
    numbers = iter(range(1 << 30))
    accepted: set[int] = set()
    with mta:
        while refusal(mta) is None:
            with smtplib.SMTP(*mta.smtp, timeout=30) as client:
                for number, _ in zip(numbers, range(100), strict=False):
                    try:
                        client.sendmail("", ["u@later.test"], message(number, "u@later.test", 20_000))
                    except smtplib.SMTPResponseException:
                        break
                    accepted.add(number)
        assert len(accepted) > 1000
        sandbox.set("later.test", {})
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
        mta.wait_until(lambda: refusal(mta) is None, "that mail is taken", PATIENCE_S)
    assert_balanced(mta, accepted, sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(disk) == []


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim."""
    if compiler() is None:
        pytest.skip("needs a C compiler, for tests/faults/diskshim.c")
    return build(tmp_path_factory.mktemp("shim"))


def test_nothing_is_sent_that_cannot_be_written_down(
        library: Path, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """When a full disk takes no outcomes either, deliveries stop at once, and `mta queue` says why. So a crash then has
    few of them made again, each announced, and when there is room all goes on."""
    mta = make_mta(workers=1, shaping={"default": {"connections": 5}}, **STORE)
    spool = Path(mta.config["spool"])
    spool.mkdir()
    shim = Shim(library, spool)
    shim.reset()
    mta.environment = shim.environment({})
    sandbox.set("later.test", {"listening": False})
    with mta:
        for number in range(500):
            mta.send("", ["u@later.test"], message(number, "u@later.test"))
        mta.wait_until(lambda: queued(mta) == 500, "mail that waits", PATIENCE_S)
        assert rows(mta)["later.test"].deliveries == 500  # so they are in the index, which `rows` are read from
        shim.fail(TAKES_SPACE, errno.ENOSPC)
        sandbox.set("later.test", {"latency": "50ms"})  # or a fast machine has sent them all before the disk says no
        mta.wait_until(lambda: "nothing is sent" in str(rows(mta).get("later.test")), "a standstill", PATIENCE_S)
        assert sandbox.stats()["distinct"] < 100
        for pid in mta.children()["worker"]:
            os.kill(pid, signal.SIGKILL)
        shim.heal()
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
    assert_balanced(mta, range(500), sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(spool) == []


def test_a_disk_with_errors(library: Path, make_mta: Callable[..., Mta], sandbox: Sandbox) -> None:
    """Under load, spells in which every write, sync, read, open or rename in the spool fails: clients are refused, the
    processes live, nothing that was accepted is lost or repeated unannounced. After each spell mail is taken again."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    mta = make_mta(workers=2, memory={"bodies": "1MB"}, **STORE)
    spool = Path(mta.config["spool"])
    spool.mkdir()
    shim = Shim(library, spool)
    shim.reset()
    mta.environment = shim.environment({})
    sandbox.set("d1.test", {"latency": "50ms"})
    with mta:
        workers = mta.children()["worker"]
        injector = Injector(mta, DOMAINS, sessions=4)
        injector.start(1 << 30)
        for _ in range(ROUNDS):
            for name, (kinds, error) in dice.sample(list(ERRORS.items()), KINDS):
                had = len(injector.accepted)
                mta.wait_until(lambda had=had: len(injector.accepted) > had + 20, f"mail taken before {name}",
                               PATIENCE_S)
                shim.fail(kinds, error, partial=dice.choice((0, 0, 100)))
                time.sleep(dice.uniform(0.2, 1.0))  # the spell
                assert rows(mta) is not None  # it answers, whatever the answer
                shim.heal()
        injector.finish()
        mta.wait_until(lambda: queued(mta) == 0, "an empty queue", PATIENCE_S)
        assert mta.children()["worker"] == workers
    assert len([line for line in mta.log if " error " in line]) < 60 * ROUNDS
    assert_balanced(mta, injector.accepted, sandbox.received())
    assert_no_bug(mta)
    assert verify_spool(spool) == []
