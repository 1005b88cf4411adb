"""The one-way rule of ARCHITECTURE.md, "Layout"."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each package may import of ours, beside itself. A module named here stands for itself alone.
ALLOWED = {
    "config": set(),
    "message": {"smtp.address"},  # which knows nobody
    "smtp": {"queue.records"},
    "queue": {"config", "smtp", "message"},
    "loop": set(),
    "delivery": {"loop", "config", "smtp", "message", "queue"},
    "access": {"config", "smtp.sasl", "queue.native"},
    "inject": {"config", "smtp", "message", "queue", "access", "loop"},
    "control": {"loop", "config", "smtp", "message", "queue", "delivery", "access", "inject"},
    "sandbox": {"config", "control.exits"},
    "simulate": {"config", "smtp", "queue", "delivery", "sandbox"},
    "demo": {"config", "queue", "control", "sandbox", "cli.text", "cli.eventreader"},
    "sendmail": {"smtp", "message", "queue.records", "inject.addresses", "control.exits", "cli"},
    "cli": {"config", "queue", "delivery", "access", "inject.certificates", "control", "sandbox", "demo", "simulate"},
}
WITHOUT_GEVENT = ("config", "smtp", "message", "queue", "access")


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file names in its imports, those inside of functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from mta.control import exits` means mta.control.exits; of what is no module, the prefix decides.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(package: str) -> list[Path]:
    """The modules of a package of ours."""
    return sorted((ROOT / "mta" / package).rglob("*.py"))


def test_every_package_is_in_the_table() -> None:
    """A new package has its place, here and in the picture of ARCHITECTURE.md; an empty one has none."""
    packages = {path.parent.name for path in (ROOT / "mta").glob("*/__init__.py")}
    assert packages == set(ALLOWED)
    picture = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("## Layout")[2]
    assert [package for package in sorted(packages) if f"  {package}/ " not in picture] == []


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "docs/smtp.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """An argument stands on tests that exist: `folder/test_module.py::test_name`, or the whole module."""
    text = (ROOT / page).read_text("utf-8")
    named = re.findall(r"`([\w/]+/test_\w+\.py)::(\w+)`", text)
    assert len(named) > 40
    modules = set(re.findall(r"`((?:smtp|inject|delivery|message|queue|integration|faults)/test_\w+\.py)[`:]", text))
    assert [module for module in sorted(modules) if not (ROOT / "tests" / module).exists()] == []
    missing = [
        f"{path}::{name}" for path, name in named
        if not re.search(rf"^(def |class )?{name}\b", (ROOT / "tests" / path).read_text("utf-8"), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    """No package imports one that is above it, but for the modules that the table names."""
    allowed = ALLOWED[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package) for name in imports_of(path)
        if name.startswith("mta.") and name.split(".")[1] in ALLOWED
        and not any(f"{name}.".startswith(f"mta.{place}.") for place in allowed)
    ]
    assert wrong == []


def test_what_needs_no_sockets_needs_no_gevent() -> None:
    """The machines, the records, the store, the configuration and the supervisor are loaded without gevent."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in WITHOUT_GEVENT for path in files_of(package)
    ]
    assert len(names) > 40
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; "
    code += "print([name for name in sys.modules if name.partition('.')[0] == 'gevent'])"
    done = subprocess.run([sys.executable, "-c", code, *names, "mta.control.supervisor"], capture_output=True,
                          text=True, cwd=ROOT, check=False)
    assert done.stdout == "[]\n", done.stderr
    assert [path.name for package in WITHOUT_GEVENT for path in files_of(package)
            if any(name.partition(".")[0] == "gevent" for name in imports_of(path))] == []
