"""Finds scenarios: bundled ones by name, TOML files, Python files."""

from __future__ import annotations

import importlib.util
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.scenario.model import Scenario
from uxk.scenario.read import parse_toml, read_scenario


def bundled() -> dict[str, str]:
    """Text of every bundled scenario by name; ``crash-under-load`` is ``crash-under-load.toml``."""
    folder = resources.files("uxk.scenario") / "library"
    found = {entry.name.removesuffix(".toml"): entry for entry in folder.iterdir() if entry.name.endswith(".toml")}
    return {name: found[name].read_text("utf-8") for name in sorted(found)}


def open_scenario(source: str | Path) -> tuple[Scenario, str]:
    """The scenario that a file or a name stands for, and its text.

    A Python file must define exactly one :class:`Scenario` at its top level; its code is run.  Raises
    :class:`ConfigError`.
    """
    path = Path(source)
    if path.suffix == ".py" and path.is_file():
        return from_python(path)
    if path.suffix == ".toml" or path.is_file():
        return read_scenario(path)
    name = str(source)
    texts = bundled()
    text = texts.get(name) or texts.get(name.replace("_", "-"))
    if text is None:
        hint = did_you_mean(name, texts)
        raise ConfigError(f"no scenario {name!r}{hint}: neither a file nor one of: {', '.join(texts)}", errno=2)
    return parse_toml(text, f"{name}.toml"), text


def from_python(path: Path) -> tuple[Scenario, str]:
    """The scenario that a Python file defines.  Extensions that it defines can be loaded by name."""
    scenarios = [value for value in vars(import_file(path, "scenario")).values() if isinstance(value, Scenario)]
    if len(scenarios) != 1:
        raise ConfigError(f"{path}: defines {len(scenarios)} scenarios, expected one")
    return scenarios[0].validate(), path.read_text("utf-8")


def import_file(path: Path, what: str) -> ModuleType:
    """Runs a Python file as a module of its own; ``what`` it defines is part of its name.  :class:`ConfigError`."""
    name = f"_uxk_{what}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise ConfigError(f"{path}: {type(exc).__name__}: {exc}") from exc
    return module
