"""`mta check` and `mta config` as an operator meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mta.cli import main
from mta.cli.check import _retries
from mta.config.loader import load, loads
from mta.config.reference import markdown
from mta.config.schema import Retry
from mta.config.units import Duration
from tests.config.helpers import HOSTNAME

ROOT = Path(__file__).parents[2]


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(HOSTNAME + "shaping: {default: {connections: 7}, domains: {a.example: {tls: off}}}\n"
                               "routes: {b.example: {relay: h.test}}\nspool: /s\nrun: /r\n")
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(HOSTNAME + "workrs: 2\nexpires: 5\n")
    return str(path)


def test_check_prints_all_problems(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Problems go to stdout, one per line, and the exit code is 78."""
    assert main(["check", "-c", bad]) == 78
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f'{bad}:2:1: workrs: unknown option; did you mean "workers"?',
        f'{bad}:3:10: expires: "5": a duration needs a unit, as in 5s or 5m',
    ]
    assert err == ""


def test_check_says_what_would_run(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A correct file is ok, and what would run is said in a few lines."""
    assert main(["check", "-c", good]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{good}: ok"
    assert "  name      mta.example.net" in lines
    assert "  accepts   nothing: no listeners, no pickup; only what is in the queue would be delivered" in lines
    assert "  routes    b.example to h.test:25" in lines
    assert "            all other domains to their MX hosts, port 25, IPv4 and IPv6" in lines
    assert len(lines) < 25
    assert max(map(len, lines)) < 120


def test_check_warns_of_an_address_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning, no error: it may be plumbed later, and mail waits or goes by other sources. No password is shown."""
    path = tmp_path / "sources.yaml"
    path.write_text(HOSTNAME + "sources:\n  here: {ipv4: 127.0.0.2}\n"
                    "  gone: {ipv4: 192.0.2.77, ehlo: out.test.example}\n"
                    "  far: {proxy: 'socks5://u:secret@192.0.2.1:1080'}\npools: {p: {here: 3, gone: 1}}\n")
    assert main(["check", "-c", str(path)]) == 0
    out = capsys.readouterr().out
    assert "  sources   here from 127.0.0.2\n" in out
    assert "gone from 192.0.2.77 as out.test.example" in out
    assert "warning: gone is suspended as long as this machine does not have the address 192.0.2.77" in out
    assert "pool p: here 3, gone 1" in out
    assert "secret" not in out


def test_check_quietly(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With -q there is no news from a correct file."""
    assert main(["check", "-q", "-c", good]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check", "-q", "-c", bad]) == 78
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_check_for_programs(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json holds the same."""
    assert main(["check", "--json", "-c", bad]) == 78
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["ok"], found["summary"]) == (bad, False, {})
    assert found["problems"][0] == {
        "file": bad, "line": 2, "column": 1, "message": 'workrs: unknown option; did you mean "workers"?'}
    assert main(["check", "--json", "-c", good]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["summary"]["name"] == ["mta.example.net"]


def test_the_file_of_the_environment(
    good: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MTA_CONFIG names the file when -c does not."""
    monkeypatch.setenv("MTA_CONFIG", good)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith(f"{good}: ok")


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is a problem like others."""
    assert main(["check", "-c", "/nonexistent/mta.yaml"]) == 78
    assert capsys.readouterr().out == "/nonexistent/mta.yaml: there is no such file\n"


def test_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """`mta config reference` prints the reference."""
    assert main(["config", "reference"]) == 0
    assert capsys.readouterr().out == markdown()


def test_show(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mta config show` prints a configuration that loads to the same; --given only what is set."""
    assert main(["config", "show", "-c", good]) == 0
    out = capsys.readouterr().out
    assert loads(out) == load(good)
    assert f"# {good}:2" in out
    assert main(["config", "show", "--given", "-c", good]) == 0
    out = capsys.readouterr().out
    assert loads(out) == load(good)
    assert "default\n" not in out
    assert main(["config", "show", "--json", "--given", "-c", good]) == 0
    assert {option["option"] for option in json.loads(capsys.readouterr().out)["options"]} == {
        "hostname", "spool", "run", "routes[b.example]", "shaping.default.connections",
        "shaping.domains[a.example].tls"}


def test_show_with_problems(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file with problems nothing is shown but these, on stderr."""
    assert main(["config", "show", "-c", bad]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2


def test_diff(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mta config diff` prints what differs and what a reload would leave as it is."""
    other = tmp_path / "other.yaml"
    other.write_text(Path(good).read_text().replace("/s\n", "/t\n").replace("7", "8"))
    assert main(["config", "diff", good, str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "spool: /s -> /t (restart)",
        "shaping.default.connections: 7 -> 8",
    ]


def test_diff_of_a_section_that_comes_or_goes(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a new tenant what is said about it, not its forty defaults; of one about which nothing is said, that it is
    there."""
    other = tmp_path / "other.yaml"
    other.write_text(Path(good).read_text() + "tenants: {acme: {weight: 3, checks: {unsubscribe: refuse}}, beta: {}}\n")
    assert main(["config", "diff", good, str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tenants.acme.weight: nothing -> 3", "tenants.acme.checks.unsubscribe: nothing -> refuse",
        "tenants.beta: nothing -> {}"]
    assert main(["config", "diff", str(other), good]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tenants.acme.weight: 3 -> nothing", "tenants.acme.checks.unsubscribe: refuse -> nothing",
        "tenants.beta: {} -> nothing"]


def test_diff_of_the_other_files(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It also tells what differs in the files of providers and of rules: options, rules, their order."""
    rule = "  - {{name: {name}, code: 45{n}, text: {name} here, class: policy, samples: [45{n} {name} here]}}\n"
    for place, (connections, rules) in {"a": (5, "one two gone"), "b": (3, "two one new")}.items():
        (tmp_path / f"{place}-providers.yaml").write_text(
            f"default: {{connections: {connections}}}\nproviders: {{big: {{match: {{mx: ['*.{place}.test']}}}}}}\n")
        (tmp_path / f"{place}-rules.yaml").write_text(
            "rules:\n" + "".join(rule.format(name=name, n=len(name)) for name in rules.split()))
        (tmp_path / f"{place}.yaml").write_text(
            f"{Path(good).read_text()}\nproviders: {tmp_path}/{place}-providers.yaml\n"
            f"rules_file: {tmp_path}/{place}-rules.yaml\n")
    # In place, as a reload finds it: only the contents differ.
    old, new = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    assert main(["config", "diff", old, new]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line] == [
        "providers.default.connections: 5 -> 3",
        'providers.providers.big.match.mx: ["*.a.test"] -> ["*.b.test"]',
        "rules_file.new.code: nothing -> 453",
        "rules_file.new.text: nothing -> new here",
        "rules_file.new.class: nothing -> policy",
        'rules_file.new.samples: nothing -> ["453 new here"]',
        "rules_file.gone.code: 454 -> nothing",
        "rules_file.gone.text: gone here -> nothing",
        "rules_file.gone.class: policy -> nothing",
        'rules_file.gone.samples: ["454 gone here"] -> nothing',
        "rules_file.order: ... one ... -> ... two ...",
    ]


@pytest.mark.parametrize(("retry", "expires", "text"), [
    (Retry(), 432_000, "after 5m, 10m, 20m, 40m, 1h20m, 2h40m, then every 4h; gives up after 5d and about 35 attempts"),
    (Retry(schedule=(Duration(300),)), 3600, "every 5m; gives up after 1h and about 12 attempts"),
    (Retry(schedule=(Duration(300), Duration(900))), 900, "after 5m; gives up after 15m and about 2 attempts"),
    (Retry(schedule=(Duration(5), Duration(5), Duration(60))), 100,
     "after 5s, 5s, then every 1m; gives up after 1m40s and about 4 attempts"),
    (Retry(factor=1.0), 1000, "every 5m; gives up after 16m40s and about 4 attempts"),
    (Retry(factor=1.2), 432_000,
     "after 5m, 6m, 7m12s, 8m38s, 10m22s, 12m26s, ..., then every 4h; gives up after 5d and about 47 attempts"),
])
def test_retries_in_words(retry: Retry, expires: float, text: str) -> None:
    """The schedule is told as it will happen: waits, what repeats, and how many attempts there are."""
    assert _retries(retry, expires) == text
