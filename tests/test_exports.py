"""The façade: what it names is there, documented and sorted, and importing it loads neither kernel nor river."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import uxk

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", uxk.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(uxk, name)
    home = importlib.import_module(f"uxk.{uxk._HOME[name]}")
    assert getattr(home, name) is value
    assert inspect.getdoc(value), f"uxk.{name} has no docstring"
    assert (value.__module__, value.__name__) == (home.__name__, name), "named where it is defined"


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert list(uxk.__all__) == sorted(set(uxk.__all__))
    assert set(dir(uxk)) == {*uxk.__all__, "__version__"}


def test_type_checkers_see_the_same_names() -> None:
    """The lazy table and the imports under TYPE_CHECKING must not drift apart."""
    tree = ast.parse((ROOT / "uxk" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname or alias.name: node.module
        for node in block.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert told == {name: f"uxk.{home}" for name, home in uxk._HOME.items()}


@pytest.mark.parametrize("name", ["Kernl", "kernel_", "_private", "np", "trio"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'uxk' has no attribute '{name}'"):
        getattr(uxk, name)


def loaded_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_uxk_is_cheap() -> None:
    loaded = loaded_after("import uxk; uxk.__version__; dir(uxk)")
    assert not loaded & {"trio", "msgspec", "numpy", "river"}
    assert not any(name.startswith("uxk.") for name in loaded)


def test_an_author_does_not_load_the_kernel() -> None:
    loaded = loaded_after("import uxk; uxk.Extension, uxk.Manifest, uxk.Params, uxk.Context, uxk.MLAgent, uxk.online")
    assert not any(name.startswith(("uxk.kernel", "uxk.subsystems", "uxk.cli", "river")) for name in loaded)


def test_nothing_loads_river_unasked() -> None:
    assert "river" not in loaded_after("import uxk; [getattr(uxk, name) for name in uxk.__all__]")


def test_star_import_gives_exactly_what_all_names() -> None:
    names: dict[str, object] = {}
    exec("from uxk import *", names)
    assert set(names) - {"__builtins__"} == set(uxk.__all__)
