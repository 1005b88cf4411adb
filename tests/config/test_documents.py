"""The files that go with the schema: the two examples and the reference say what the schema says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_origin

import pytest

from mta.config.describe import options_of, own_options_of, section_of
from mta.config.loader import load, read, read_text
from mta.config.problems import OptionPath, path_text
from mta.config.providers import Providers
from mta.config.reference import markdown
from mta.config.schema import Config, Route
from mta.config.shaping import DomainLayer, Match, ProviderLayer, SourceLayer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "conf" / "mta.yaml"


# Mappings whose keys are the operator's, each with one that fits.
BY_NAME = {"sources": "out1", "tenants": "acme", "senders": "example.org", "users": "acme"}


def plain(path: OptionPath) -> OptionPath:
    """A path in a file as `all_options` has it: without positions and names of the operator's."""
    return tuple(part for before, part in zip((None, *path), path, strict=False)
                 if not isinstance(part, int) and before not in BY_NAME)


def uncommented() -> str:
    """The example with every option in force: options are commented out by a `#` without a space."""
    return re.sub(r"(?m)^( *)#(?=[^ ])", r"\1", EXAMPLE.read_text("utf-8"))


def all_options(section: Any = Config, path: OptionPath = ()) -> list[tuple[OptionPath, Any]]:
    """Every option of the schema by its path, without positions and domains."""
    found: list[tuple[OptionPath, Any]] = []
    for name, option in options_of(section).items():
        here = (*path, name)
        found.append((here, option))
        inner = section_of(option.type)
        if inner is not None and inner is not Route and not (here[0] == "shaping" and get_origin(option.type) is dict):
            found += all_options(inner, here)
    return found


@pytest.mark.parametrize("name", ["mta.yaml", "minimal.yaml"])
def test_examples_run_as_shipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shipped, an ordinary user can run them: high ports on loopback, directories at home, nobody else may relay."""
    monkeypatch.setenv("HOME", "/home/x")
    config = load(str(ROOT / "conf" / name))
    assert config.listeners
    for listener in config.listeners:
        assert listener.smtp.host == "127.0.0.1"
        assert listener.smtp.port > 1024
        assert list(map(str, listener.relay_from)) == ["127.0.0.0/8"]
    for directory in (config.spool, config.run, *(pickup.directory for pickup in config.pickup)):
        assert directory.startswith("/home/x/")
    assert config.user is None


def test_minimal_is_minimal() -> None:
    """It fits where the README shows it."""
    assert len((ROOT / "conf" / "minimal.yaml").read_text("utf-8").splitlines()) == 15


def test_example_names_every_option() -> None:
    """With the comment signs taken away the example is correct and sets every option of the schema."""
    reading = read_text(uncommented())
    assert reading.problems == []
    given = {plain(path) for path in reading.given}
    assert [path_text(path) for path, _ in all_options() if path not in given] == []


def test_example_shows_defaults() -> None:
    """An option that is commented out shows its default, except where there is none to show."""
    shipped, whole = read(str(EXAMPLE)), read_text(uncommented())
    assert shipped.config is not None
    assert whole.config is not None
    for path, option in all_options():
        inside_list = {"listeners", "pickup", "certificates", *BY_NAME} & set(path)
        named = {plain(one) for one in shipped.given}
        if path in named or inside_list or option.default is None or section_of(option.type) is not None:
            continue
        value: Any = whole.config
        if path[:2] == ("shaping", "default"):
            value, path = whole.config.shaping.effective(), path[2:]
        for part in path:
            value = getattr(value, str(part))
        assert value == option.default, path_text(path)


def test_reference_is_current() -> None:
    """docs/configuration.md is what `mta config reference` prints."""
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == markdown()


def test_reference_names_every_option() -> None:
    """Every option stands in the reference with its own words."""
    text = markdown().replace("\n  ", " ")
    options = all_options()
    for layer in (ProviderLayer, DomainLayer, SourceLayer, Match):
        options += [((layer.__name__, name), option) for name, option in own_options_of(layer).items()]
    for path, option in options:
        assert option.doc, path_text(path)
        assert f"- **`{option.name}`** (" in text
        assert f"): {option.doc}" in text, path_text(path)


def test_examples_in_the_schema_are_correct() -> None:
    """What the schema gives as an example is a value of that option."""
    for path, option in all_options():
        if not option.example or path == ("pools",):  # that one needs the sources
            continue
        *sections, name = path
        text = f"{{{name}: {option.example}}}"
        for section in reversed(sections):
            text = f"{{smtp: '127.0.0.1:1', {text[1:-1]}}}" if section == "listeners" and name != "smtp" else text
            text = f"{{{BY_NAME[str(section)]}: {text}}}" if section in BY_NAME else text
            text = f"{{{section}: {text}}}"
        hostname = "" if name == "hostname" and not sections else "hostname: mta.example.net, "
        assert read_text("{" + hostname + text[1:]).problems == [], path_text(path)


def test_the_examples_of_rules_are_whole() -> None:
    """The long one in docs/rules.md is a configuration without an error: its providers exist, its samples fit; the
    other one is part of any."""
    text = (ROOT / "docs" / "rules.md").read_text("utf-8")
    whole, part = (piece.partition("```")[0] for piece in text.split("```yaml\n")[1:])
    assert read_text(whole).problems == []
    assert read_text(f"hostname: mta.example.net\n{part}").problems == []
    for wrong in (whole.replace("[example,", "[exempel,"), whole.replace("address 192.0.2.1 is", "host is")):
        assert read_text(wrong).problems != []


def test_the_example_of_shaping_is_true() -> None:
    """What docs/shaping.md says about its example holds."""
    text = (ROOT / "docs" / "shaping.md").read_text("utf-8")
    reading = read_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert reading.config is not None, reading.problems
    shaping = reading.config.shaping
    google = shaping.effective("", "google")
    assert (google.connections, list(map(str, google.message_rate)), google.messages_per_connection, google.tls,
            google.expires) == (5, ["20/s", "40000/h"], 50, "opportunistic", 432_000)
    assert [(one.name, one.connections) for one in shaping.totals("", "google")] == [("source:>provider:google", 5)]
    news = shaping.effective("", "acme", "news.example")
    assert (news.connections, news.messages_per_connection, news.retry.first, news.retry.cap, news.expires) == (
        2, 100, 60, 14_400, 28_800)
    assert [(one.name, one.connections) for one in shaping.totals("", "acme", "news.example")] == [("provider:acme", 4)]
    assert shaping.effective().connections == 10
    assert Providers(shaping).of(["mx1.acme.example", "mx2.acme.example"], "news.example") == "acme"
