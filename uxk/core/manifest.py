"""Checks of a manifest before anything of its module is used (Linux: scripts/mod/modpost.c, by
intent).

A manifest is written by the module's author, so nothing about it is believed, not even the types.
All problems are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from uxk import limits
from uxk.core.budget import memory_problems
from uxk.core.confine import sandbox_problems
from uxk.core.params import describe_params, expected_text, format_param
from uxk.core.suggest import did_you_mean
from uxk.errors import ManifestError, ParamError
from uxk.uapi.manifest import Budget, Ioctl, Manifest, Params, RestartPolicy, Softdep, Watchdog

LIST_MAX: Final = 256
"""Entries of one list of a manifest (depends, aliases, rules, capabilities, ioctls, parameters)."""
RESTARTS_MAX: Final = 1024
"""Largest ``max_restarts``: each is a remembered time."""
RESERVED_PARAMS: Final = ("cpu_ppm", "instance", "placement")
"""Keywords of ``modprobe`` itself."""

RIGHTS: Final = ("read", "write", "submit", "ioctl", "poll", "lock", "grant")
"""Rights words, in the order in which they are always listed."""
DEFAULT_RIGHTS: Final = {
    "kmsg": ("read",), "sysctl": ("read",), "sysfs": ("read",), "device": ("submit",),
    "chardev": ("read",), "lock": ("lock",), "snapshot": ("read",),
    "module": ("read",), "class": ("read",), "model": ("read",), "site": ("submit",),
    "bpf": ("write", "submit"),
}  # fmt: skip
"""Known kinds, and the rights of a request that names none: the least that is of use."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VERSION: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~:_-]*")
_PATTERN: Final = re.compile(r"[!-~]+")
_TARGET: Final = re.compile(r"[!-9;-~]+")


class CapabilityRequest(NamedTuple):
    """A parsed capability string; ``rights`` are in the order of :data:`RIGHTS`, never empty."""

    kind: str
    target: str
    """A name or an ``fnmatch`` pattern; ``"*"`` for kmsg, of which there is one."""
    rights: tuple[str, ...]


def canonical(name: str) -> str:
    """The real name: ``-`` and ``_`` are the same, as for modprobe; ``_`` is written."""
    return name.replace("-", "_")


def name_problem(name: object) -> str:
    """What is wrong with a module, class, device or lock name; ``""`` if nothing is."""
    if not isinstance(name, str):
        return f"name {name!r} is no text"
    if not 1 <= len(name) <= limits.NAME_MAX_BYTES:
        shown = name[: limits.NAME_MAX_BYTES]
        return f"name {shown!r} has {len(name)} characters; expected 1 to {limits.NAME_MAX_BYTES}"
    if _NAME.fullmatch(name) is None:
        return f"name {name!r}: expected a-z, 0-9, '_', '-', beginning with a letter or digit"
    return ""


def parse_capability(text: str) -> CapabilityRequest:
    """Reads ``kind:target[:right,right...]``; kmsg needs no target (``kmsg:read``).

    Raises :class:`ManifestError` naming the text and what was expected.
    """
    if len(text) > limits.PATH_MAX_BYTES:
        raise ManifestError(f"capability: expected at most {limits.PATH_MAX_BYTES} characters")
    kind, *rest = text.split(":")
    if kind not in DEFAULT_RIGHTS:
        hint = did_you_mean(kind, DEFAULT_RIGHTS)
        raise ManifestError(f"capability {text!r}: unknown kind {kind!r}{hint}; known: {', '.join(DEFAULT_RIGHTS)}")
    if kind == "kmsg" and (not rest or rest[0] != "*"):
        rest = ["*", *rest]
    if not 1 <= len(rest) <= 2 or not _TARGET.fullmatch(rest[0]):
        raise ManifestError(f"capability {text!r}: expected KIND:TARGET or KIND:TARGET:RIGHT,RIGHT")
    words = rest[1].split(",") if len(rest) == 2 else DEFAULT_RIGHTS[kind]
    for word in words:
        if word not in RIGHTS:
            hint = did_you_mean(word, RIGHTS)
            raise ManifestError(f"capability {text!r}: unknown right {word!r}{hint}; known: {', '.join(RIGHTS)}")
    return CapabilityRequest(kind, rest[0], tuple(right for right in RIGHTS if right in words))


def check_manifest(manifest: Manifest, *, where: str) -> None:
    """Raises :class:`ManifestError` listing all that is wrong; ``where`` is the module's file."""
    problems = manifest_problems(manifest)
    if problems:
        name = str(getattr(manifest, "name", manifest))[: limits.NAME_MAX_BYTES]
        raise ManifestError(f"{where}: module {name!r}: " + "; ".join(problems))


def manifest_problems(manifest: object) -> list[str]:
    """Everything that is wrong with ``manifest``, in a fixed order; empty if it is good."""
    if not isinstance(manifest, Manifest):
        return [f"manifest is {type(manifest).__name__}, expected Manifest"]
    problems = list(_type_problems(manifest))
    if problems:
        return problems  # the rules below rely on the types
    rules: tuple[Callable[[Manifest], Iterable[str]], ...] = (
        _texts, _lists, _params, _dependencies, _binds, _capabilities,
        _numbers, memory_problems, sandbox_problems, _ioctls,
    )  # fmt: skip
    return [problem for rule in rules for problem in rule(manifest)]


def _type_problems(manifest: Manifest) -> Iterator[str]:
    problem = name_problem(manifest.name)
    if problem:
        yield problem
    for field in msgspec.structs.fields(Manifest):
        value = getattr(manifest, field.name)
        if field.name == "params":
            if not isinstance(value, type) or not issubclass(value, Params):
                yield f"params is {value!r}, expected a subclass of Params"
        elif field.name == "ioctls":
            if not isinstance(value, tuple):
                yield f"ioctls is {type(value).__name__}, expected a tuple of Ioctl"
        elif field.name != "name":
            try:
                msgspec.convert(msgspec.to_builtins(value), field.type)
            except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
                yield f"{field.name}: {error}"


def _texts(manifest: Manifest) -> Iterator[str]:
    problem = name_problem(manifest.driver_class)
    if problem:
        yield f"driver_class: {problem}"
    if manifest.host and (problem := name_problem(manifest.host)):
        yield f"host: {problem}"
    version = manifest.version
    if len(version) > limits.NAME_MAX_BYTES or _VERSION.fullmatch(version) is None:
        most = limits.NAME_MAX_BYTES
        yield f"version {version[:80]!r}: expected 1 to {most} of 0-9 A-Z a-z . + ~ : _ -"
    for field in ("author", "license", "description"):
        text: str = getattr(manifest, field)
        if not text.isprintable() or len(text.encode()) > limits.SHOW_MAX_BYTES:
            yield f"{field}: expected one printable line of at most {limits.SHOW_MAX_BYTES} bytes"
    for alias in manifest.alias:
        if len(alias) > limits.PATH_MAX_BYTES or _PATTERN.fullmatch(alias) is None:
            yield f"alias {alias[:80]!r}: expected printable ASCII without blanks"


def _lists(manifest: Manifest) -> Iterator[str]:
    for field in ("depends", "alias", "binds", "capabilities", "ioctls"):
        count = len(getattr(manifest, field))
        if count > LIST_MAX:
            yield f"{field}: {count} entries; at most {LIST_MAX}"


def _params(manifest: Manifest) -> Iterator[str]:
    cls = manifest.params
    if not cls.__struct_config__.frozen:
        yield f"params {cls.__name__}: expected a frozen struct"
    try:
        infos = describe_params(cls)
    except ParamError as error:
        yield str(error)
        return
    if len(infos) > LIST_MAX:
        yield f"params: {len(infos)} parameters; at most {LIST_MAX}"
    for info, field in zip(infos, msgspec.structs.fields(cls), strict=True):
        if info.name in RESERVED_PARAMS:
            yield f"parameter {info.name!r}: the name is reserved for modprobe"
        try:
            msgspec.json.schema(field.type)
        except TypeError:
            yield f"parameter {info.name!r}: {info.type_text} is no type that msgspec can read"
        if len(info.name) > limits.NAME_MAX_BYTES:
            yield f"parameter {info.name[:80]!r}: name longer than {limits.NAME_MAX_BYTES}"
        if info.unit not in ("", "bytes", "ns"):
            yield f"parameter {info.name!r}: unknown unit {info.unit!r}; expected 'bytes' or 'ns'"
        elif info.unit and "int" not in re.findall(r"\w+", info.type_text):
            yield f"parameter {info.name!r}: unit {info.unit!r} needs an int, not {info.type_text}"
        if not field.required and not _is_valid_default(field):
            yield f"parameter {info.name!r}: its default {info.default_text} is not {expected_text(info)}"


def _is_valid_default(field: msgspec.structs.FieldInfo) -> bool:
    no_default = field.default is msgspec.NODEFAULT
    try:
        default = field.default_factory() if no_default else field.default
        value: Any = msgspec.convert(default, field.type)
        msgspec.msgpack.encode(value)
        return len(format_param(value).encode()) <= limits.SHOW_MAX_BYTES
    except Exception:  # a factory is the author's: it may raise anything
        return False


def _dependencies(manifest: Manifest) -> Iterator[str]:
    soft: Softdep = manifest.softdep
    lists = {"depends": manifest.depends, "softdep pre": soft.pre, "softdep post": soft.post}
    for field, names in lists.items():
        seen: set[str] = set()
        if len(names) > LIST_MAX:
            yield f"{field}: {len(names)} entries; at most {LIST_MAX}"
        for name in names[:LIST_MAX]:
            if len(name) > limits.PATH_MAX_BYTES or _PATTERN.fullmatch(name) is None:
                yield f"{field}: {name[:80]!r}: expected a module's name or alias"
            elif canonical(name) == canonical(manifest.name):
                yield f"{field}: {name!r} is the module itself"
            elif canonical(name) in seen:
                yield f"{field}: {name!r} is named twice"
            seen.add(canonical(name))


def _binds(manifest: Manifest) -> Iterator[str]:
    for bind in manifest.binds:
        if not bind.match:
            yield "binds: an empty rule would attach to every device"
        if "" in bind.match or len(bind.match) > LIST_MAX:
            yield f"binds: a rule needs 1 to {LIST_MAX} keys, none empty"
        for key, pattern in bind.match.items():
            if not (key + pattern).isprintable() or len(key + pattern) > limits.PATH_MAX_BYTES:
                yield f"binds: {key[:40]!r}: {pattern[:40]!r}: expected printable text"


def _capabilities(manifest: Manifest) -> Iterator[str]:
    for text in manifest.capabilities:
        try:
            parse_capability(text)
        except ManifestError as error:
            yield str(error)


def _numbers(manifest: Manifest) -> Iterator[str]:
    budget: Budget = manifest.budget
    restart: RestartPolicy = manifest.restart
    watchdog: Watchdog = manifest.watchdog
    most = limits.I64_MAX
    bounds: tuple[tuple[str, int | None, int, int], ...] = (
        ("budget.memory_bytes", budget.memory_bytes, 0, most),
        ("budget.queue_depth", budget.queue_depth, limits.QUEUE_DEPTH_MIN, limits.QUEUE_DEPTH_MAX),
        ("budget.cpu_ppm", budget.cpu_ppm, 1, limits.PPM),
        ("budget.hints_per_s", budget.hints_per_s, 0, limits.NS_PER_S),
        ("budget.log_burst", budget.log_burst, 0, limits.KMSG_RECORDS_DEFAULT),
        ("restart.max_restarts", restart.max_restarts, 0, RESTARTS_MAX),
        ("restart.period_ns", restart.period_ns, 1, most),
        ("restart.backoff_ns", restart.backoff_ns, 0, restart.backoff_max_ns),
        ("restart.backoff_max_ns", restart.backoff_max_ns, 0, most),
        ("watchdog.heartbeat_ns", watchdog.heartbeat_ns, 1, most),
        ("watchdog.request_timeout_ns", watchdog.request_timeout_ns, 1, most),
        ("watchdog.timeouts_max", watchdog.timeouts_max, 1, limits.U32_MAX),
        ("ready_timeout_ns", manifest.ready_timeout_ns, 1, most),
        ("turn_cost_ns", manifest.turn_cost_ns, 0, most),
        ("state_version", manifest.state_version, 1, limits.U32_MAX),
    )
    for what, value, least, greatest in bounds:
        if value is not None and not least <= value <= greatest:
            yield f"{what} is {value}, expected {least} to {greatest}"
    if budget.queue_depth & (budget.queue_depth - 1):
        yield f"budget.queue_depth is {budget.queue_depth}, expected a power of two"


def _ioctls(manifest: Manifest) -> Iterator[str]:
    numbers: dict[int, str] = {}
    names: set[str] = set()
    entries: tuple[object, ...] = manifest.ioctls
    for ioctl in entries:
        if not isinstance(ioctl, Ioctl) or name_problem(ioctl.name):
            yield f"ioctls: {ioctl!r}: expected an Ioctl with a name of a-z 0-9 _ -"
            continue
        what = f"ioctl {ioctl.name!r}"
        number = ioctl.number
        if type(number) is not int or not 0 <= number <= limits.U32_MAX:
            yield f"{what}: number {number!r}, expected 0 to {limits.U32_MAX}"
        elif number in numbers:
            yield f"{what}: number {number} is already {numbers[number]!r}'s"
        else:
            numbers[number] = ioctl.name
        if canonical(ioctl.name) in names:
            yield f"{what}: the name is used twice"
        names.add(canonical(ioctl.name))
        for role, kind in (("arg", ioctl.arg), ("reply", ioctl.reply)):
            try:
                msgspec.msgpack.Decoder(kind)
            except (TypeError, ValueError, NameError, RecursionError) as error:
                yield f"{what}: {role} {kind!r} is no type that msgspec can read: {error}"
