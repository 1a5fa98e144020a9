"""Names, aliases and dependencies of modules, as depmod and modprobe know them.

Sources: depmod(8), modprobe(8), modprobe.d(5); kmod's libkmod-module.c for the order of soft
dependencies. All walks use explicit stacks, so a long chain is no deep recursion, and all orders
follow declared order or the alphabet, never a hash.

**Blacklist.**  As on Linux it concerns aliases only, bind rules (modalias texts) included.  A module
named by its real name, by the user or by another module's ``depends``, loads although it is
blacklisted.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from uxk import limits
from uxk.core.bind import PREFIX, matching, modalias, parse_modalias
from uxk.core.manifest import canonical
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.core.suggest import did_you_mean
from uxk.errors import DependencyError, ManifestError, NoSuchModule, UsageError
from uxk.uapi.manifest import Manifest

_OUTSIDE_BRACKETS: Final = re.compile(r"(\[[^]]*\])|-")
_NO_CONFIG: Final = ModprobeConfig()
_SHOWN_MAX: Final = 16
"""Names of a chain that a message shows."""


class Step(NamedTuple):
    """One module to load.  If ``soft``, its failure does not stop the others."""

    name: str
    soft: bool


class ModuleGraph:
    """What depmod would write down about a set of modules.  Immutable.

    ``config`` adds the administrator's aliases, blacklist and soft dependencies.  Raises
    :class:`ManifestError` if two modules have the same canonical name or a key is not its
    manifest's name.
    """

    __slots__ = ("_blacklist", "_config_aliases", "_exact", "_manifests", "_patterns", "_softdeps")

    def __init__(self, manifests: Mapping[str, Manifest], config: ModprobeConfig = _NO_CONFIG) -> None:
        self._manifests: dict[str, Manifest] = {}
        for key in sorted(manifests):
            name = canonical(key)
            if name != canonical(manifests[key].name):
                raise ManifestError(f"module {key!r}: its manifest names {manifests[key].name!r}")
            if name in self._manifests:
                raise ManifestError(f"module {name!r}: two modules have this name")
            self._manifests[name] = manifests[key]
        self._blacklist = frozenset(map(canonical, config.blacklist))
        self._softdeps = config.softdeps
        self._config_aliases = [(_normal(p), canonical(name)) for p, name in config.aliases]
        self._exact: dict[str, list[str]] = {}
        self._patterns: list[tuple[str, str]] = []
        for name, manifest in sorted(self._manifests.items()):
            for alias in manifest.alias:
                pattern = _normal(alias)
                if re.search(r"[*?\[]", pattern):
                    self._patterns.append((pattern, name))
                else:
                    self._exact.setdefault(pattern, []).append(name)

    def resolve(self, name_or_alias: str) -> str:
        """Canonical name of the one module meant.

        Tried in this order: real name; aliases of the configuration; exact aliases of modules;
        alias patterns of modules (``fnmatch``); for ``uxk:...`` modalias texts, bind rules.  The
        first kind that gives one which is not blacklisted decides.  Raises :class:`NoSuchModule`,
        and :class:`UsageError` (``ENOTUNIQ``) if several modules fit.
        """
        name = canonical(name_or_alias)
        if len(name) > limits.PATH_MAX_BYTES:
            raise NoSuchModule(f"module name of {len(name)} characters: {name[:40]!r}...")
        if name in self._manifests:
            return name
        blocked: list[str] = []
        for candidates in self._alias_candidates(name_or_alias):
            distinct = list(dict.fromkeys(candidates))
            open_ones = [module for module in distinct if module not in self._blacklist]
            blocked += [module for module in distinct if module in self._blacklist]
            if len(open_ones) > 1:
                text = ", ".join(sorted(open_ones)[:_SHOWN_MAX])
                raise UsageError(f"{name_or_alias!r} is ambiguous: it fits {text}", errno=errno.ENOTUNIQ)
            if open_ones:
                return self._configured(name_or_alias, open_ones[0])
        if blocked:
            raise NoSuchModule(f"{name_or_alias!r} is an alias of the blacklisted {blocked[0]}")
        hint = did_you_mean(name, (*self._manifests, *self._exact))
        raise NoSuchModule(f"no module or alias {name_or_alias!r}{hint}")

    def load_order(self, name_or_alias: str) -> list[Step]:
        """What to load, in this order, to have the module: each once, its own step included.

        As kmod: hard dependencies depth first in declared order, then ``softdep pre``, the module,
        ``softdep post``.  Soft ones that are missing or broken are left out.  One that itself needs
        a module still to come is put at the end.  Raises :class:`NoSuchModule` or
        :class:`DependencyError` naming the chain.
        """
        root = self.resolve(name_or_alias)
        hard = frozenset(self._closure(root))
        return [Step(name, name not in hard) for name in _Loader(self).order(root)]

    def soft_dependencies(self, name: str) -> list[str]:
        """Words of all soft dependencies of module ``name``, as written, whether they can be had or not."""
        soft = [self._manifests[name].softdep, *filter(None, [self._softdeps.get(name)])]
        return [word for each in soft for word in (*each.pre, *each.post)]

    def dependents(self, name_or_alias: str) -> list[str]:
        """Modules that directly and firmly depend on it, by name."""
        wanted = self.resolve(name_or_alias)
        return [name for name in self._manifests if wanted in self._known_hard(name)]

    def modules_dep(self) -> str:
        """Text of ``modules.dep``: a line ``name: dep...`` per module.

        All of its dependencies, the one to load first last, as depmod writes them.  Modules whose
        dependencies cannot be had are left out.
        """
        lines: list[str] = []
        for name in self._manifests:
            closure = self._closure_or_none(name)
            if closure is not None:
                lines.append(" ".join((f"{name}:", *reversed(closure[:-1]))))
        return "".join(f"{line}\n" for line in lines)

    def modules_alias(self) -> str:
        """Text of ``modules.alias``: ``alias PATTERN MODULE``; bind rules as modalias texts."""
        lines = ["# Aliases extracted from modules themselves."]
        for name, manifest in self._manifests.items():
            lines += [f"alias {alias} {name}" for alias in manifest.alias]
            lines += [f"alias {modalias(bind.match)} {name}" for bind in manifest.binds]
        return "".join(f"{line}\n" for line in lines)

    def check_all(self) -> list[str]:
        """Problems of the whole set, one line each: what cannot load, aliases that clash."""
        problems: list[str] = []
        for name in self._manifests:
            try:
                self._closure(name)
            except (UsageError, DependencyError) as error:
                problems.append(f"{name}: {error}")
        for alias, names in sorted(self._exact.items()):
            others = sorted(set(names))
            if len(others) > 1:
                problems.append(f"alias {alias}: declared by {', '.join(others)}")
            if alias in self._manifests and others != [alias]:
                problems.append(f"alias {alias}: hidden by the module of that name")
        for pattern, module in self._config_aliases:
            if module not in self._manifests:
                problems.append(f"alias {pattern}: points to {module}, which does not exist")
        return problems

    # --- used by the loader ---

    def _known_hard(self, name: str) -> list[str]:
        """Direct hard dependencies that can be resolved."""
        found = (self._find(other) for other in self._manifests[name].depends)
        return [other for other in found if other is not None]

    def _known_soft(self, name: str) -> tuple[list[str], list[str]]:
        """Soft dependencies (pre, post) that can be loaded; the admin's come last."""
        soft = [self._manifests[name].softdep]
        if name in self._softdeps:
            soft.append(self._softdeps[name])
        return (
            self._loadable(word for each in soft for word in each.pre),
            self._loadable(word for each in soft for word in each.post),
        )

    def _loadable(self, words: Iterable[str]) -> list[str]:
        found = (self._find(word) for word in words)
        return [name for name in found if name is not None and self._closure_or_none(name) is not None]

    def _find(self, name_or_alias: str) -> str | None:
        try:
            return self.resolve(name_or_alias)
        except UsageError:
            return None

    def _closure_or_none(self, name: str) -> list[str] | None:
        try:
            return self._closure(name)
        except (UsageError, DependencyError):
            return None

    def _closure(self, root: str) -> list[str]:
        """All hard dependencies of ``root`` in load order, itself last; raises naming the chain."""
        order: dict[str, None] = {}
        path: dict[str, Iterator[str]] = {root: iter(self._manifests[root].depends)}
        while path:
            name = next(reversed(path))
            wanted = next(path[name], None)
            if wanted is None:
                order[name] = None
                path.popitem()
                continue
            other = self._needed(wanted, path)
            if other in path:
                chain = list(path)
                circle = [*chain[chain.index(other) :], other]
                raise DependencyError(f"circular dependency: {_chain(circle)}")
            if other not in order:
                path[other] = iter(self._manifests[other].depends)
        return list(order)

    def _needed(self, wanted: str, path: Iterable[str]) -> str:
        try:
            return self.resolve(wanted)
        except NoSuchModule as error:
            raise NoSuchModule(f"missing dependency: {_chain([*path, wanted])}: {error}") from None
        except UsageError as error:
            message = f"unclear dependency: {_chain([*path, wanted])}: {error}"
            raise UsageError(message, errno=error.errno) from None

    # --- aliases ---

    def _alias_candidates(self, text: str) -> Iterator[list[str]]:
        name = canonical(text)
        yield [module for pattern, module in self._config_aliases if fnmatchcase(name, pattern)]
        yield self._exact.get(name, [])
        yield [module for pattern, module in self._patterns if fnmatchcase(name, pattern)]
        if text.startswith(PREFIX):
            properties = parse_modalias(text)
            yield [canonical(m.name) for m in matching(self._manifests.values(), properties)]

    def _configured(self, alias: str, module: str) -> str:
        if module not in self._manifests:
            raise NoSuchModule(f"{alias!r} is an alias of {module}, which does not exist")
        return module


class _Loader:
    """One walk of :meth:`ModuleGraph.load_order`; generators on a stack in place of recursion."""

    __slots__ = ("_coming", "_graph", "_later", "_order")

    def __init__(self, graph: ModuleGraph) -> None:
        self._graph = graph
        self._order: dict[str, None] = {}
        self._coming: dict[str, None] = {}
        self._later: dict[str, None] = {}

    def order(self, root: str) -> list[str]:
        self._walk(root)
        while self._later:
            name = next(iter(self._later))
            del self._later[name]
            self._walk(name)
        return list(self._order)

    def _walk(self, root: str) -> None:
        stack = [self._visit(root)]
        while stack:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
            else:
                stack.append(self._visit(name))

    def _visit(self, name: str) -> Iterator[str]:
        """Yields what is to be visited before going on.  The caller excluded hard cycles."""
        if name in self._order:
            return
        self._coming[name] = None
        graph = self._graph
        yield from graph._known_hard(name)
        pre, post = graph._known_soft(name)
        yield from self._possible(pre)
        self._order[name] = None
        del self._coming[name]
        yield from self._possible(post)

    def _possible(self, soft: Iterable[str]) -> Iterator[str]:
        """Soft ones that need nothing which is still coming; the others are kept for the end."""
        for name in soft:
            if name not in self._coming and name not in self._order:
                closure = self._graph._closure_or_none(name) or []
                if any(needed in self._coming for needed in closure):
                    self._later[name] = None
                else:
                    yield name


def _normal(pattern: str) -> str:
    """``-`` as ``_`` except inside brackets, where it means a range (kmod: alias_normalize)."""
    return _OUTSIDE_BRACKETS.sub(lambda match: match[1] or "_", pattern)


def _chain(names: Iterable[str]) -> str:
    chain = list(names)
    if len(chain) > _SHOWN_MAX:
        chain = [*chain[: _SHOWN_MAX // 2], f"... ({len(chain)} names)", *chain[-_SHOWN_MAX // 2 :]]
    return " -> ".join(chain)
