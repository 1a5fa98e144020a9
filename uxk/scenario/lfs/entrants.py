"""Who takes part in a study: published policies, oracles, agents, and policies from files of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from uxk.core.manifest import canonical
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, NoSuchModule
from uxk.kernel.catalog import Catalog
from uxk.scenario.find import import_file
from uxk.scenario.lfs.programs import MARK, read_program
from uxk.scenario.model import Load
from uxk.subsystems.lfs import policies

Kind: TypeAlias = Literal["human", "oracle", "agent", "own"]
ORACLE: Final = "fkg6"
ORACLE_POLICY: Final = "fkg6/cb-age"
HUMANS: Final = "humans"
DEFAULT: Final = "default"


class Entrant(Struct, frozen=True, kw_only=True):
    """One of those compared."""

    name: str
    """In results."""
    kind: Kind
    policy: str = ""
    """``placement/selection``; empty for an agent, and for policies from a file of Python."""
    load: Load | None = None
    """An agent's module."""
    file: str = ""
    """Where an own policy is, or its program."""


def resolve(words: Iterable[str], default: str) -> list[Entrant]:
    """Entrants by the words of ``--policy``, each once, in this order.

    ``humans`` is the published set, ``default`` the kernel's own policy, ``fkg6`` the oracle, ``placement/selection``
    and presets are what they are called, ``placement/program:FILE`` scores segments by a program, ``FILE.py`` has a
    policy or an agent of one's own, and anything else is an agent's module, with parameters as
    ``NAME:KEY=VALUE,KEY=VALUE``.  Raises :class:`ConfigError`.
    """
    found: dict[str, Entrant] = {}
    for word in words:
        wanted = policies.HUMANS if word == HUMANS else (default if word == DEFAULT else word,)
        for name in wanted:
            entrant = _entrant(name)
            found.setdefault(entrant.name, entrant)
    return list(found.values())


def _entrant(word: str) -> Entrant:
    if word == ORACLE:
        return Entrant(name=word, kind="oracle", policy=ORACLE_POLICY)
    name, _, rest = word.partition(":")
    if name.endswith(".py"):
        return _from_file(name, word, _params(word, rest))
    if word in policies.PRESETS:
        return Entrant(name=word, kind="human", policy=_preset(word))
    if MARK in word:
        return _programmed(word)
    if "/" in name:
        placement, _, selection = word.partition("/")
        if placement not in (*policies.PLACEMENTS, *policies.ORACLES) or selection not in policies.SELECTIONS:
            raise ConfigError(f"policy {word!r}: no such policy{_near(word)}")
        return Entrant(name=word, kind="oracle" if placement in policies.ORACLES else "human", policy=word)
    return _agent(name, word, _params(word, rest))


def _programmed(word: str) -> Entrant:
    """A placement, and a program from a file."""
    placement, _, path = word.partition(MARK)
    if placement not in policies.PLACEMENTS:
        raise ConfigError(f"policy {word!r}: no placement {placement!r}{did_you_mean(placement, policies.PLACEMENTS)}")
    read_program(path)
    return Entrant(name=f"{placement}{MARK}{Path(path).name}", kind="own", policy=f"{placement}/program", file=path)


def _preset(name: str) -> str:
    preset = policies.PRESETS[name]()
    return f"{preset.placement.name}/{preset.selection.name}"


def _near(word: str) -> str:
    words = [*policies.names(), HUMANS, DEFAULT, ORACLE]
    placements = ", ".join((*policies.PLACEMENTS, *policies.ORACLES))
    selections = ", ".join(policies.SELECTIONS)
    presets = ", ".join((*policies.PRESETS, HUMANS, DEFAULT))
    return f"{did_you_mean(word, words)}; placements: {placements}; selections: {selections}; also: {presets}"


def _params(word: str, text: str) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"policy {word!r}: {part!r}: expected KEY=VALUE behind the colon")
        params[key] = value
    return params


def _agent(name: str, word: str, params: dict[str, Any]) -> Entrant:
    try:
        manifest = Catalog(ModprobeConfig()).get(name).manifest
    except NoSuchModule as exc:
        raise ConfigError(f"policy {word!r}: neither a policy nor a module{_near(word)}", errno=exc.errno) from None
    if manifest.kind == "driver":
        raise ConfigError(f"policy {word!r}: module {canonical(manifest.name)} is a driver, not an agent")
    return Entrant(name=word, kind="agent", load=Load(name=name, params=params))


# --- files --------------------------------------------------------------------------------------------------


def _from_file(path: str, word: str, params: dict[str, Any]) -> Entrant:
    """A file with a Placement or a Selection or both has a policy; another one is for insmod."""
    name = Path(path).name
    if _parts(_imported(path), path) == (None, None):
        return Entrant(name=name + word[len(path) :], kind="agent", load=Load(file=path, params=params))
    if params:
        raise ConfigError(f"policy {word!r}: a policy from a file takes no parameters")
    return Entrant(name=name, kind="own", file=path)


def own_policy(path: str) -> policies.Policy:
    """A new policy out of a file: its placement with its selection, either from the default if it has only one."""
    placement, selection = _parts(_imported(path), path)
    try:
        return policies.Policy(
            policies.SepBIT() if placement is None else placement(),
            policies.CbAge() if selection is None else selection(),
            label=Path(path).name,
        )
    except TypeError as exc:
        raise ConfigError(f"{path}: {exc}: classes of a policy are made without arguments") from None


def _imported(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ConfigError(f"policy {path!r}: no such file", errno=2)
    return import_file(Path(path), "policy")


def _parts(module: ModuleType, path: str) -> tuple[type[policies.Placement] | None, type[policies.Selection] | None]:
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    placements = [each for each in own if issubclass(each, policies.Placement)]
    selections = [each for each in own if issubclass(each, policies.Selection)]
    for what, found in (("placements", placements), ("selections", selections)):
        if len(found) > 1:
            names = ", ".join(each.__name__ for each in found)
            raise ConfigError(f"policy {path!r}: {len(found)} {what}: {names}; expected one")
    return (placements[0] if placements else None), (selections[0] if selections else None)
