"""``uxk fault``: what goes wrong in a running kernel, switched while it runs.

Modules that have faults of their own publish the writable attribute ``faults`` and, since a write has no answer,
``faults_status``: the number of writes heard, and ``ok`` or ``error: ...`` for the last.  Faults between the kernel and
an instance go through ``/sys/kernel/faults``.
"""

from __future__ import annotations

import argparse
import errno
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, clean, note, print_json, with_kernel
from uxk.cli.fault_words import CONTROL, PLAN, control_row, written
from uxk.errors import NoSuchModule, TreeError, UsageError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

_TRIES: Final = 100
_PAUSE_S: Final = 0.02
"""The module's answer is looked for so often, so far apart: two seconds, its turn comes within milliseconds."""
_LINE: Final = re.compile(r"add (?:id=(?P<id>\S+) )?(?P<rule>[^#]*?)(?: # (?P<did>.*))?")
_ACTIONS: Final = ("add", "list", "rm")
_PUBLISHERS: Final = {"link": "nbd_server or nvmet_tcp", "namespaces": "nvme", CONTROL: "nvme with medium=ftl"}
"""Modules of uxk's own that have such attributes."""

_EPILOG: Final = """\
rules of module nvme are KEY=VALUE words: which commands (opcode, queue, nsid, lba, window), which of those (after,
every, probability_ppm, count), and what happens (action=status|delay|drop|corrupt|truncate|powerloss|edit):
  uxk fault add nvme opcode=read lba=100-200 action=status status=media-error dnr=1
  uxk fault add nvme opcode=write probability_ppm=1000 action=delay delay_ns=p50:1ms,p99:50ms

shorter, and KEY=VALUE words may follow:
  uxk fault add nvme media-error 100-200     reads of these blocks fail
  uxk fault add nvme write-error 100-200     writes to them fail
  uxk fault add nvme latency 2ms             every I/O takes so much longer
  uxk fault add nvme power-loss              at the next I/O: what the write cache holds is gone

the flash of nvme medium=ftl, until `rm MODULE slow-die-3`, or `throttle`:
  uxk fault add nvme slow-die 3 20           die 3 takes 20 times as long; slow-channel: what one carries
  uxk fault add nvme throttle 2              as slow as if it were much too hot; 1: too hot, 0: not at all

events, which happen at once (of these, only `link down` is listed, and `rm MODULE link` ends it):
  uxk fault add nvmet_tcp link down          clients lose their connections; `link up` lets them come back; nbd_server
  uxk fault add nvme namespace add 64MiB     a namespace appears, or goes: `namespace rm NSID`

between the kernel and any module: words of a scenario's [[faults]] (docs/faults.md), with kind=crash|hang|slow|drop|
delay|reorder|duplicate|corrupt|stale|lie|leak|flood
  uxk fault add null kind=hang duration_ns=2s
  uxk fault add null kind=delay delay_ns=10ms probability_ppm=5000
  uxk fault add null kind=crash where=requests message=write after=99
  uxk fault add gc kind=lie where=commands message=hint probability_ppm=100000
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "fault", fault, kernel=True, json=True, epilog=_EPILOG,
        help="add, list or remove faults of a running kernel's devices",
    )  # fmt: skip
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", metavar="add|list|rm", choices=_ACTIONS)
    parser.add_argument("module", metavar="MODULE", nargs="?", default="", help="an instance; list: default all")
    parser.add_argument("words", metavar="RULE|ID", nargs="*", help="add: the fault; rm: numbers or names from list")


def fault(args: argparse.Namespace) -> int:
    """Adds, lists or removes."""
    if args.action != "list" and (not args.module or not args.words):
        raise UsageExit(f"{args.action}: expected MODULE and {'a RULE' if args.action == 'add' else 'an ID'}")
    if args.action == "list" and args.words:
        raise UsageExit(f"list: expected at most a MODULE, got {' '.join(args.words)!r} behind it")
    if args.action == "add":
        attribute, text = written(args.module, args.words)
        with_kernel(args, lambda kernel: _add(kernel, args.module, attribute, text, args.json))
    elif args.action == "rm":
        with_kernel(args, lambda kernel: _remove(kernel, args.module, args.words))
    else:
        rows = with_kernel(args, lambda kernel: _rows(kernel, args.module))
        if args.json:
            print_json([row._asdict() for row in rows])
        elif rows:
            print(table(rows))
    return GOOD


# --- talking to the kernel --------------------------------------------------------------------------


def _path(module: str, attribute: str) -> str:
    return f"/sys/module/{module.replace('-', '_')}/attributes/{attribute}"


async def _read(kernel: ControlClient, path: str) -> str | None:
    """An attribute's text, or None if it is not there."""
    try:
        return await kernel.read(path)
    except TreeError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


async def _write(kernel: ControlClient, path: str, text: str) -> None:
    """Writes, and waits until the module says what came of it.  UsageError with its words if it refused."""
    import trio

    before = await _read(kernel, f"{path}_status")
    await kernel.write(path, text)
    if before is None:
        return
    for _ in range(_TRIES):
        number, _, outcome = (await _read(kernel, f"{path}_status") or "").partition(" ")
        if number != before.split(" ", 1)[0]:
            if outcome != "ok":
                raise UsageError(outcome.removeprefix("error: ") or f"{path}: the module is gone")
            return
        await trio.sleep(_PAUSE_S)
    note(f"{path}: written, but the module has not said what came of it")


async def _add(kernel: ControlClient, module: str, attribute: str, text: str, json: bool) -> None:
    path = attribute if attribute == PLAN else _path(module, attribute)
    if await _read(kernel, path) is None:
        raise await _missing(kernel, module, attribute)
    before = {row[:3] for row in await _rows(kernel, module)}
    await _write(kernel, path, text)
    for row in await _rows(kernel, module):
        if row[:3] not in before:
            if json:
                print_json(row._asdict())
            else:
                print(f"{clean(row.module)}: fault {clean(row.id)}: {clean(row.rule)}")


async def _missing(kernel: ControlClient, module: str, attribute: str) -> UsageError:
    """Why there is nothing to write to."""
    if attribute == PLAN:
        return UsageError(f"{PLAN}: this kernel takes no faults while it runs", errno=errno.EOPNOTSUPP)
    loaded = [row.name for row in await kernel.lsmod()]
    if module.replace("-", "_") not in loaded:
        from uxk.core.suggest import did_you_mean

        owner = next((name for name in sorted(loaded, key=len, reverse=True) if module.startswith(name)), "")
        hint = f" (a device of {owner!r}? faults are a module's)" if owner else did_you_mean(module, loaded)
        return NoSuchModule(f"{module!r} is not loaded{hint}")
    if attribute == "faults":
        hint = ": it has no faults of its own; those between it and the kernel have a kind="
    else:
        able = [name for name in loaded if await _read(kernel, _path(name, attribute)) is not None]
        would = f"; {_PUBLISHERS[attribute]} would" if attribute in _PUBLISHERS else ""
        hint = f": {', '.join(able)} does" if able else f": no module does that is loaded{would}"
    return UsageError(f"{module} publishes no attribute {attribute!r}{hint}", errno=errno.EOPNOTSUPP)


async def _remove(kernel: ControlClient, module: str, ids: Sequence[str]) -> None:
    rows = await _rows(kernel, module)
    for each in ids:
        row = next((row for row in rows if row.id == each), None)
        if row is None:
            known = ", ".join(row.id for row in rows) or "none"
            raise UsageError(f"{module}: no fault {each!r}, there are: {known}", errno=errno.ENOENT)
        if row.source == "link":
            await _write(kernel, _path(module, "link"), "up")
        elif row.source in ("faults", PLAN):
            await _write(kernel, PLAN if row.source == PLAN else _path(module, "faults"), f"rm {each}")
        else:
            undo = control_row(written(module, row.rule.split())[1])[2]
            await _write(kernel, _path(module, CONTROL), undo)


# --- what there is ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One fault in force."""

    module: str
    id: str
    rule: str
    matched: int | None = None
    fired: int | None = None
    source: str = "faults"
    """The attribute that it stands in."""


async def _rows(kernel: ControlClient, module: str) -> list[Row]:
    """The faults of a module, or of all."""
    loaded = sorted(row.name for row in await kernel.lsmod())
    wanted = [module.replace("-", "_")] if module else loaded
    if wanted[:1] != [""] and not set(wanted) <= set(loaded):
        raise await _missing(kernel, module, "faults")
    rows: list[Row] = []
    for name in wanted:
        rows += [row_of(name, line) for line in (await _read(kernel, _path(name, "faults")) or "").splitlines()]
        if (await _read(kernel, _path(name, "link"))) == "down":
            rows.append(Row(name, "link", "link down", source="link"))
        for line in filter(None, (await _read(kernel, _path(name, CONTROL)) or "").splitlines()):
            what, rule, _ = control_row(line)
            rows.append(Row(name, what, rule, source=CONTROL))
    plan = [plan_row(line) for line in (await _read(kernel, PLAN) or "").splitlines()]
    return rows + [row for row in plan if row.module in wanted]


def row_of(module: str, line: str) -> Row:
    """From a line of a module's attribute: ``add id=1 RULE # matched=4 fired=2``."""
    found = _LINE.fullmatch(line)
    if found is None:
        return Row(module, "", line)
    did = dict(part.split("=", 1) for part in (found["did"] or "").split() if "=" in part)
    matched, fired = (int(did[key]) if did.get(key, "").isdecimal() else None for key in ("matched", "fired"))
    return Row(module, found["id"] or "", found["rule"], matched, fired)


def plan_row(line: str) -> Row:
    """From a line of the plan's, whose words name module and fault."""
    row = row_of("", line)
    words = dict(part.split("=", 1) for part in row.rule.split() if "=" in part)
    rule = " ".join(f"{key}={value}" for key, value in words.items() if key not in ("module", "name"))
    return row._replace(
        module=words.get("module", "").replace("-", "_"), id=words.get("name", ""), rule=rule, source=PLAN
    )


def table(rows: Sequence[Row]) -> str:
    """Columns, as wide as they must be."""
    cells = [("module", "id", "matched", "fired", "rule")]
    for row in rows:
        matched, fired = ("-" if number is None else str(number) for number in (row.matched, row.fired))
        cells.append((clean(row.module), clean(row.id), matched, fired, clean(row.rule)))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  {line[4]}"
        for line in cells
    )
