"""What the fuzzer found on its way, and what it found wrong, is tried again with every run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import corpus, plain
from tests.fuzz.targets import TARGETS, Target

MEGABYTE = 1_000_000


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_inputs_that_are_kept(target: Target) -> None:
    """No input that is kept shows a mistake: each goes through code that no other one of them reached, or was a finding
    once."""
    for data in [*target.seeds, *corpus.kept(target.name)]:
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{target.name}: found with {corpus.line_of(data)}") from error


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_some_cases_at_random(target: Target) -> None:
    """A few hundred changed inputs, the same ones each time: what breaks a parser badly is seen without the fuzzer."""
    plain.run(target, 300, 3600, seed=1)


def test_kept_files_belong_to_targets() -> None:
    """Each is small, and is of a target that there is; altogether they are below a megabyte."""
    files = [*corpus.CORPORA.glob("*"), *corpus.FINDINGS.glob("*")]
    assert {path.name.removesuffix(".txt") for path in files} <= set(TARGETS)
    assert {path.stem for path in corpus.CORPORA.glob("*")} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < MEGABYTE


def test_lines_of_inputs(tmp_path: Path) -> None:
    """Every octet comes back from its file, whatever it begins with."""
    inputs = [bytes(range(256)), b"#", b"# x\n\\", b"'\"\\x00", b"\r\n\r\n", b" "]
    path = tmp_path / "x.txt"
    path.write_text("# a comment\n" + "".join(f"{corpus.line_of(data)}\n" for data in inputs), "ascii")
    assert corpus.read(path) == inputs


def test_a_mistake_is_found() -> None:
    """An input that raises anything ends the run and is told; the same seed tries the same inputs."""

    def run(data: bytes) -> None:
        assert b"!!" not in data

    target = Target("fake", run, (b"abc", b"!"), (b"!",))
    found = []
    for _ in range(2):
        with pytest.raises(plain.Finding) as caught:
            plain.run(target, 100_000, 3600, seed=3)
        found.append(caught.value.data)
    assert found[0] == found[1]
    assert b"!!" in found[0]
