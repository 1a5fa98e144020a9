"""What the host process of one instance is allowed: the manifest's words with the parameters filled in."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from uxk import limits
from uxk.core.params import format_param
from uxk.core.suggest import did_you_mean
from uxk.uapi.manifest import Manifest, Params, Sandbox

PATHS_MAX: Final = 64
"""Paths of one list; each costs the process a rule at its start."""
_PARAM: Final = re.compile(r"\{(\w+)(?::(\w+))?\}")
_BOUNDS: Final = {
    "memory_bytes": (1, limits.I64_MAX), "files": (limits.HOST_FILES_MIN, limits.OPEN_FILES_MAX)
}  # fmt: skip


def allowed(manifest: Manifest, params: Params, folder: str) -> Sandbox:
    """The manifest's ``sandbox`` with the parameters' values; relative paths begin in ``folder``, an absolute one."""
    sandbox = manifest.sandbox
    return msgspec.structs.replace(
        sandbox, read=_paths(sandbox.read, params, folder), write=_paths(sandbox.write, params, folder)
    )


def _paths(templates: tuple[str, ...], params: Params, folder: str) -> tuple[str, ...]:
    """A template whose parameter is empty, or has another word in front, stands for nothing."""
    found = [_filled(template, params) for template in templates]
    return tuple(posixpath.normpath(posixpath.join(folder, path)) for path in found if path)


def _filled(template: str, params: Params) -> str:
    path = template
    for match in _PARAM.finditer(template):
        name, word = match.groups()
        value = format_param(getattr(params, name))
        if word is not None:
            value = value.removeprefix(f"{word}:") if value.startswith(f"{word}:") else ""
        if not value or "\0" in value:
            return ""
        path = path.replace(match[0], value)
    return path


def sandbox_texts(sandbox: Sandbox) -> Iterator[str]:
    """What is asked for beyond the defaults: ``network``, ``write {unix}/..``, ``files 1024``."""
    for field in msgspec.structs.fields(Sandbox):
        value = getattr(sandbox, field.name)
        if isinstance(value, tuple):
            yield from (f"{field.name} {path}" for path in value)
        elif value != field.default:
            yield field.name if value is True else f"{field.name} {value}"


def sandbox_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a manifest's ``sandbox``, in words."""
    sandbox: Sandbox = manifest.sandbox
    for field, (least, most) in _BOUNDS.items():
        value = getattr(sandbox, field)
        if not least <= value <= most:
            yield f"sandbox.{field} is {value}, expected {least} to {most}"
    for field in ("read", "write"):
        paths: tuple[str, ...] = getattr(sandbox, field)
        if len(paths) > PATHS_MAX:
            yield f"sandbox.{field}: {len(paths)} entries; at most {PATHS_MAX}"
        for path in paths[:PATHS_MAX]:
            yield from _path_problems(f"sandbox.{field}: {path[: limits.NAME_MAX_BYTES]!r}", path, manifest)


def _path_problems(what: str, path: str, manifest: Manifest) -> Iterator[str]:
    known = manifest.params.__struct_fields__
    names = [match[1] for match in _PARAM.finditer(path)]
    if len(path) > limits.PATH_MAX_BYTES or "\0" in path or not path.startswith(("/", "{")):
        yield f"{what}: expected an absolute path, or a parameter in braces"
    for name in names:
        if name not in known:
            yield f"{what}: {name!r} is no parameter{did_you_mean(name, known)}"
