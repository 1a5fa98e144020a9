"""Finds the build that an upgrade names: a file, a package's folder, or a version of the module.

Versions come from what this process has, from installed entry points, from files beside the modprobe.d files, and from
builds that were offered.  What a file holds is told by its text, so that nothing is imported but what is wanted; and
what is imported lies beside what runs, under a name of its own, until the upgrade is confirmed or it is unloaded.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from uxk.core.manifest import canonical
from uxk.core.suggest import did_you_mean
from uxk.errors import ModuleError, NoSuchModule, UsageError
from uxk.kernel.catalog import ENTRY_POINT_GROUP, FILE_SUFFIXES, Catalog, ExtensionClass, import_beside
from uxk.module import declared, versions

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent

_TEXT_MAX_BYTES: Final = 4 << 20
"""Of a file that is searched for a manifest."""


class Found(NamedTuple):
    """A version of a module: where it is, and how to get it."""

    version: str
    where: str
    load: Callable[[], ExtensionClass]


class Finder:
    """Finds and imports builds for upgrades."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._fresh: dict[ExtensionClass, list[str]] = {}
        """What was imported for an upgrade that is not over: the names in ``sys.modules``."""
        self.offered: Callable[[str], list[ExtensionClass]] = lambda instance: []
        """Builds of an instance that were offered; set by who offers them."""

    def find(self, agent: KernelAgent, to: ExtensionClass | str | Path | None) -> ExtensionClass:
        """The class to upgrade to.  NoSuchModule naming the versions that there are; ModuleError for a bad file."""
        if to is None:
            return agent.extension_class
        if isinstance(to, type):
            return to
        if isinstance(to, Path) or is_path(to):
            return self.load(Path(to), canonical(agent.manifest.name))
        name = canonical(agent.manifest.name)
        known: dict[str, Found] = {}
        for found in self._versions(agent, name):
            known.setdefault(found.version, found)
        if to in known:
            return self._checked(known[to])
        there = "; ".join(
            f"{each.version} ({'it runs' if each.version == agent.manifest.version else each.where})"
            for each in sorted(known.values())
        )
        raise NoSuchModule(
            f"{agent.name}: no version {to!r} of {name}{did_you_mean(to, known)}; there are: {there}; or give the path "
            "of a file or of a package's folder, with a '/'"
        )

    def _checked(self, found: Found) -> ExtensionClass:
        cls = found.load()
        if cls.manifest.version != found.version:
            self.forget(cls)
            raise ModuleError(f"{found.where}: version {cls.manifest.version!r}, its text says {found.version!r}")
        return cls

    # --- importing ---

    def load(self, path: Path, name: str = "") -> ExtensionClass:
        """Imports a file or a package's folder beside everything else; of several extensions the one called ``name``.

        Nothing finds it by its name until :meth:`confirm`; :meth:`forget` unloads it.
        """
        before, declared_before, versions_before = set(sys.modules), dict(declared), dict(versions)
        try:
            cls = import_beside(path, name)
        finally:  # defining a class makes it the newest of its name: not this one, not yet
            declared.clear()
            declared.update(declared_before)
            versions.clear()
            versions.update(versions_before)
        top = cls.__module__.partition(".")[0]
        self._fresh[cls] = [each for each in set(sys.modules) - before if each.partition(".")[0] == top]
        return cls

    def confirm(self, cls: ExtensionClass) -> None:
        """From now on it is what is found by its name and version."""
        self._fresh.pop(cls, None)
        self._catalog.add(cls)
        versions[canonical(cls.manifest.name), cls.manifest.version] = cls

    def forget(self, cls: ExtensionClass) -> None:
        """Unloads what was imported for an upgrade that came to nothing."""
        for name in self._fresh.pop(cls, ()):
            sys.modules.pop(name, None)

    # --- looking ---

    def _versions(self, agent: KernelAgent, name: str) -> Iterator[Found]:
        yield Found(agent.manifest.version, "it runs", lambda: agent.extension_class)
        for (module, version), cls in sorted(versions.items(), key=lambda item: item[0]):
            if module == name:
                yield Found(version, "in this process", partial(_itself, cls))
        for cls in self.offered(agent.name):
            if isinstance(cls.manifest.version, str):
                yield Found(cls.manifest.version, "a build that was made", partial(_itself, cls))
        for path in _installed(name):
            yield from self._in_file(path, name, f"installed, {path}")
        if self._catalog.folder is not None:
            for path in sorted(self._catalog.folder.iterdir()):
                yield from self._in_file(path, name, str(path))

    def _in_file(self, path: Path, name: str, where: str) -> Iterator[Found]:
        for version in versions_in(path, name):
            yield Found(version, where, partial(self.load, path, name))


def is_path(to: str) -> bool:
    """Whether an upgrade's target is a path, and no version."""
    return to.endswith(FILE_SUFFIXES) or "/" in to


def _itself(cls: ExtensionClass) -> ExtensionClass:
    return cls


def _installed(name: str) -> Iterator[Path]:
    """Files, or packages' folders, that entry points name: as they are on the disk now, which may have changed."""
    importlib.invalidate_caches()
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if canonical(entry_point.name) != name:
            continue
        top = entry_point.module.partition(".")[0]
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            yield path.parent if path.name == "__init__.py" else path


def versions_in(path: Path, name: str) -> list[str]:
    """Versions of a module that a file or a package's folder holds, by its text; nothing is run.

    Found are manifests whose name and version are written out.  What cannot be read holds none.
    """
    try:
        if path.is_dir():
            if not (path / "__init__.py").is_file():
                return []
            files = sorted(path.rglob("*.py"))
            return [version for file in files for version in versions_in(file, name)]
        if path.suffix not in FILE_SUFFIXES or path.stat().st_size > _TEXT_MAX_BYTES:
            return []
        text = path.read_bytes()
        if path.suffix == ".toml":
            table = tomllib.loads(text.decode())
            return [str(table.get("version", "0"))] if canonical(str(table.get("name"))) == name else []
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, UsageError, RecursionError):
        return []
    return [version for node in ast.walk(tree) if (version := _manifest_version(node, name)) is not None]


def _manifest_version(node: ast.AST, name: str) -> str | None:
    """The version in a call of ``Manifest`` with that name."""
    if not isinstance(node, ast.Call):
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    if called != "Manifest" or not isinstance(given.get("name"), str) or canonical(str(given["name"])) != name:
        return None
    version = given.get("version", "0")
    named = any(word.arg == "version" for word in node.keywords)
    return version if isinstance(version, str) and ("version" in given or not named) else None
