"""The conformance suite over every module of this repository, installed, and over what ``uxk new`` makes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from uxk.testing import Check, Subject, all_checks, subject

ROOT = Path(__file__).resolve().parent.parent
GROUP = "uxk.modules"
GENERATED = (("driver", "my-disk"), ("extension", "a_longer_name_for_an_extension"), ("ml-agent", "gc-2"))
"""What ``uxk new`` is asked for."""


def modules() -> dict[str, EntryPoint]:
    """Every module that pyproject.toml declares or that is installed, by name."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"][GROUP]
    found = {point.name: point for point in entry_points(group=GROUP)}
    return dict(sorted((found | {name: EntryPoint(name, value, GROUP) for name, value in declared.items()}).items()))


@cache
def examined(name: str) -> Subject:
    """The module of that name."""
    return subject(modules()[name].load())


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("name", list(modules()))
def test_module(name: str, check: Check) -> None:
    check(examined(name))


@pytest.mark.parametrize("name", list(modules()))
def test_name_is_that_of_its_entry_point(name: str) -> None:
    assert examined(name).name == name.replace("-", "_")


def test_the_template_modules_are_among_them() -> None:
    assert {"null", "echo"} <= set(modules())


# --- what `uxk new` makes -------------------------------------------------------------------------------


def run(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Runs Python with uxk and its modules on the path; returns what it prints."""
    places = [ROOT, ROOT / "drivers", ROOT / "extensions", *([path] if path else [])]
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("kind", "name"), GENERATED)
def test_generated_package(kind: str, name: str, tmp_path: Path) -> None:
    printed = run("-m", "uxk", "new", kind, name, "--dir", tmp_path, cwd=tmp_path)
    module = name.replace("-", "_")
    folder = tmp_path / f"uxk_{module}"
    made = sorted(path.relative_to(tmp_path).as_posix() for path in folder.rglob("*") if path.is_file())
    package = f"uxk_{module}/uxk_{module}"
    assert made == sorted((
        f"uxk_{module}/pyproject.toml", f"{package}/__init__.py", f"{package}/py.typed",
        f"uxk_{module}/tests/test_{module}.py",
    ))  # fmt: skip
    assert all(str(tmp_path / path) in printed for path in made)

    report = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert f"{len(all_checks()) + 2} passed" in report


def test_generated_code_is_typed_and_formatted(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    pytest.importorskip("ruff")
    for kind, name in GENERATED:
        run("-m", "uxk", "new", kind, name, "--dir", tmp_path, cwd=tmp_path)
    run("-m", "mypy", "--strict", "--cache-dir", ROOT / ".mypy_cache", ".", cwd=tmp_path)
    run("-m", "ruff", "check", "--no-cache", "--select", "E,F,I,UP,B,RUF", ".", cwd=tmp_path)
    run("-m", "ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)


def test_generated_package_installed(tmp_path: Path) -> None:
    run("-m", "uxk", "new", "driver", "fresh", "--dir", tmp_path, cwd=tmp_path)
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", "--target", site, tmp_path / "uxk_fresh", cwd=tmp_path)
    assert "fresh" in run("-m", "uxk", "lsmod", cwd=tmp_path, path=site)
    assert f"{len(all_checks())} passed, 0 failed" in run("-m", "uxk", "check", "fresh", cwd=tmp_path, path=site)
