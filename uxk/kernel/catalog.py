"""Which modules there are: classes defined in this process, entry points, single files.

Looked up in that order by name; only a name that none of them has makes the catalogue import every entry
point, to search their aliases.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import itertools
import sys
import traceback
import types
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from uxk.core.depgraph import ModuleGraph
from uxk.core.manifest import canonical, check_manifest
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.errors import ManifestError, ModuleError, NoSuchModule
from uxk.kernel import foreign
from uxk.module import Extension, declared
from uxk.uapi.manifest import Manifest

ExtensionClass: TypeAlias = type[Extension[Any]]
ENTRY_POINT_GROUP: Final = "uxk.modules"
FILE_SUFFIXES: Final = (".py", foreign.SUFFIX)
"""Of files that can be loaded."""


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(canonical(entry_point.name), entry_point)
    return dict(sorted(found.items()))


class Catalog:
    """Finds extension classes by name and knows how they depend on each other."""

    def __init__(self, config: ModprobeConfig, folder: str | Path | None = None) -> None:
        self.config = config
        self.folder = None if folder is None else Path(folder)
        """Where the modprobe.d files are, and perhaps other versions of modules."""
        self._added: dict[str, ExtensionClass] = {}
        self.broken: dict[str, str] = {}
        """Modules that cannot be used, and why: they must not keep others from being found."""

    def add(self, cls: ExtensionClass) -> Manifest:
        """Makes a class known to this kernel.  Raises :class:`ManifestError` if its manifest is wrong."""
        manifest = checked(cls)
        self._added[canonical(manifest.name)] = cls
        return manifest

    def add_file(self, path: str | Path) -> Manifest:
        """Imports a single Python file with exactly one extension in it, and makes that known; or reads a TOML file.

        Raises :class:`NoSuchModule`, or :class:`ModuleError` naming file and cause.
        """
        path = Path(path)
        try:
            return self.add(_import_file(path))
        except NoSuchModule as exc:
            if path.suffix not in FILE_SUFFIXES and canonical(path.name) in self.names():
                raise NoSuchModule(f"{exc} (a module? use modprobe)") from None
            raise

    def find(self, name: str) -> ExtensionClass | None:
        """The class of the module really called ``name`` (aliases do not count), or None.

        Raises :class:`ModuleError` if there is an entry point of that name which cannot be imported.
        """
        name = canonical(name)
        cls = self._added.get(name) or declared.get(name)
        if cls is None and name in _entry_points():
            cls = self._import(name)
        return cls

    def get(self, name: str) -> ExtensionClass:
        """The class of module ``name`` or alias ``name``; NoSuchModule, with a suggestion, if there is none."""
        cls = self.find(name)
        if cls is None:
            cls = self.find(_resolved(self.graph(), name))
        assert cls is not None
        return cls

    def usable(self, name: str) -> ExtensionClass | None:
        """As :meth:`find`, with a good manifest; what is wrong otherwise is noted in :attr:`broken`."""
        name = canonical(name)
        try:
            cls = self.find(name)
            if cls is not None:
                _named(cls, name)
        except ModuleError as exc:
            text = str(exc)
            self.broken[name] = text if name in text else f"module {name!r}: {text}"
            return None
        self.broken.pop(name, None)
        return cls

    def graph_for(self, name: str) -> ModuleGraph:
        """The graph that decides about ``name``; everything is imported only if that is an alias."""
        graph = self.graph(name if self.find(name) else None)
        if name.endswith(FILE_SUFFIXES):
            _resolved(graph, name)
        return graph

    def resolve(self, name: str) -> str:
        """The real name of module or alias ``name``; a name that nobody has is returned as it is."""
        try:
            return self.graph_for(name).resolve(name)
        except NoSuchModule:
            return canonical(name)

    def graph(self, root: str | None = None) -> ModuleGraph:
        """Dependencies of everything, or of what ``root`` can reach (nothing else is imported then)."""
        wanted = self.names() if root is None else [root]
        if root is not None:
            _named(self.get(root), root)  # its own faults are the caller's business
        manifests: dict[str, Manifest] = {}
        while wanted:
            name = canonical(wanted.pop())
            cls = None if name in manifests else self.usable(name)
            if cls is None:
                if root is not None and name not in manifests:
                    return self.graph()  # an alias, or missing: the whole picture decides
                continue
            manifest = manifests[name] = cls.manifest
            wanted += [*manifest.depends, *manifest.softdep.pre, *manifest.softdep.post]
            for softdep in [self.config.softdeps.get(name)] if root is not None else []:
                wanted += [] if softdep is None else [*softdep.pre, *softdep.post]
        return ModuleGraph(manifests, self.config)

    def names(self) -> list[str]:
        """All modules by name, those that turn out to be broken included."""
        return sorted({*self._added, *declared, *_entry_points()})

    def _import(self, name: str) -> ExtensionClass:
        entry_point = _entry_points()[name]
        try:
            cls = entry_point.load()
        except (Exception, SystemExit) as exc:  # somebody else's package: anything may go wrong
            failure = _import_failure(exc, entry_point.module.partition(".")[0])
            text = f"module {name!r}: cannot import {entry_point.value}: {failure.place}{failure.text}"
            raise ModuleError(text, errno=failure.errno) from exc
        if not (isinstance(cls, type) and issubclass(cls, Extension)):
            raise ModuleError(f"module {name!r}: {entry_point.value} is no uxk.Extension")
        return cls


_checked: Final[WeakKeyDictionary[ExtensionClass, Manifest]] = WeakKeyDictionary()
"""Manifests found good: a check takes a millisecond, and a class may be loaded ten thousand times."""


def checked(cls: ExtensionClass) -> Manifest:
    """The class's manifest, checked, with its docstring as description if it gives none."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    manifest = getattr(cls, "manifest", None)
    if manifest is None:
        raise ManifestError(f"{where}: has no manifest")
    if _checked.get(cls) is not manifest:
        check_manifest(manifest, where=where)
        _checked[cls] = manifest
    assert isinstance(manifest, Manifest)
    return manifest


def _named(cls: ExtensionClass, name: str) -> None:
    if canonical(checked(cls).name) != canonical(name):
        raise ManifestError(f"module {name!r}: its manifest names {cls.manifest.name!r}")


def description(cls: ExtensionClass) -> str:
    """The manifest's description, or the first line of the class's docstring."""
    return cls.manifest.description or (cls.__doc__ or "").strip().partition("\n")[0]


def import_beside(path: Path, name: str = "") -> ExtensionClass:
    """The extension in a Python file, a package's folder or a TOML file, imported beside what was imported before.

    Of several extensions the one called ``name``; raises as :meth:`Catalog.add_file`.
    """
    return _import_file(path, beside=True, wanted=name)


def _import_file(path: Path, *, beside: bool = False, wanted: str = "") -> ExtensionClass:
    """``beside`` keeps files of the same name that were imported before importable, for processes of their own."""
    source = path / "__init__.py" if beside and path.is_dir() else path
    try:
        found = source.is_file()
    except OSError as exc:  # in a folder that may not be searched
        raise ModuleError(f"{str(path)!r}: {exc.strerror}", errno=exc.errno) from exc
    if not found:
        raise NoSuchModule(f"no file {str(source)!r}")
    if path.suffix == foreign.SUFFIX:
        return foreign.read_file(path)
    if source.suffix != ".py":
        raise ModuleError(f"{str(path)!r}: expected a .py file, or a .toml file of a program in another language")
    name = stem = f"uxk_insmod_{canonical(path.stem)}"
    for number in itertools.count(2) if beside else ():
        if name not in sys.modules:
            break
        name = f"{stem}_{number}"
    within = None if source is path else [str(path)]
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=within)
    if spec is None or spec.loader is None:
        raise ModuleError(f"{str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # msgspec resolves annotations through it
    try:
        spec.loader.exec_module(module)
        return _only_extension(module, str(path), wanted)
    except BaseException as exc:
        for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[each]
        if before is not None:
            sys.modules[name] = before
        if isinstance(exc, (Exception, SystemExit)) and not isinstance(exc, ModuleError):
            failure = _import_failure(exc, name, spec.origin)
            raise ModuleError((failure.place or f"{str(path)!r}: ") + failure.text, errno=failure.errno) from exc
        raise


class _ImportFailure(NamedTuple):
    place: str
    """``file:line: `` of the innermost frame that is the module's own, or nothing."""
    text: str
    errno: int | None


def _import_failure(exc: BaseException, package: str, file: str | None = None) -> _ImportFailure:
    """Where and why the import of ``package`` (whose source is ``file``) failed."""
    place, kind = "", type(exc).__name__
    for frame, line in traceback.walk_tb(exc.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            place = f"{frame.f_code.co_filename}:{line}: "
    if isinstance(exc, SyntaxError) and exc.filename:
        where = f"{exc.filename}:{exc.lineno or 1}: "
        if exc.filename == file or (not place and file is None):
            return _ImportFailure(where, f"{kind}: {exc.msg}", None)
        return _ImportFailure(place, f"{where}{kind}: {exc.msg}", None)
    if isinstance(exc, OSError) and exc.strerror and not place:  # its source cannot be read
        other = f"{exc.filename}: " if exc.filename and exc.filename != file else ""
        return _ImportFailure("", f"{other}{exc.strerror}", exc.errno)
    return _ImportFailure(place, f"{kind}: {exc}", None)


def _resolved(graph: ModuleGraph, name: str) -> str:
    try:
        return graph.resolve(name)
    except NoSuchModule as exc:
        if name.endswith(FILE_SUFFIXES):
            raise NoSuchModule(f"{exc} (a file? use insmod)") from None
        raise


def _only_extension(module: types.ModuleType, where: str, wanted: str) -> ExtensionClass:
    """The one extension with a manifest; in a package, of all its modules that it has imported."""
    inside = [each for name, each in sys.modules.items() if name.startswith(f"{module.__name__}.")]
    found = list(dict.fromkeys(
        value for each in (module, *inside) for value in vars(each).values()
        if isinstance(value, type) and issubclass(value, Extension) and value.__module__ == each.__name__
        and "manifest" in vars(value)
    ))  # fmt: skip
    if len(found) > 1 and wanted:
        found = [cls for cls in found if canonical(str(getattr(cls.manifest, "name", ""))) == wanted] or found
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ModuleError(f"{where!r}: expected exactly one Extension with a manifest, found {names}")
    return found[0]
