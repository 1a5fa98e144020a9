"""``uxk iostat``: what the disks of a running kernel are doing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import GOOD, Subparsers, UsageExit, add_verb, disk_folder, print_json, with_kernel

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient
    from uxk.subsystems.blk.iostat import Figures, Snapshot

_NAME_COLUMNS: Final = 14


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "iostat", iostat, kernel=True, json=True,
        help="print what the disks of a running kernel are doing",
        epilog="The first report is of the time since boot, the others of each INTERVAL in seconds. Rates are per "
        "second of the kernel's time. With --json, one object per report.",
    )  # fmt: skip
    parser.add_argument("-x", action="store_true", help="extended figures: the only ones there are")
    parser.add_argument("words", nargs="*", metavar="DEVICE... [INTERVAL [COUNT]]", help="all disks if none is named")


def iostat(args: argparse.Namespace) -> int:
    """Needs a running kernel."""
    names, interval_s, count = parse_words(args.words)

    async def report(kernel: ControlClient) -> int:
        import trio

        for name in names:
            await disk_folder(kernel, name)
        before: dict[str, Snapshot] = {}
        reports = 0
        while True:
            before = await _report(kernel, names, before, args.json)
            reports += 1
            if not interval_s or reports == count:
                return GOOD
            await trio.sleep(interval_s)

    return with_kernel(args, report)


def parse_words(words: list[str]) -> tuple[list[str], int, int]:
    """Devices, interval in seconds (0: one report only) and number of reports (0: for ever).  Raises UsageExit."""
    names = [word for word in words if not word.lstrip("-").isdecimal()]
    numbers = [int(word) for word in words if word.lstrip("-").isdecimal()]
    if words[: len(names)] != names or len(numbers) > 2 or any(number <= 0 for number in numbers):
        raise UsageExit(f"{' '.join(words)!r}: expected DEVICE... and then INTERVAL and COUNT, both at least 1")
    return names, numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0


async def _report(
    kernel: ControlClient, names: list[str], before: dict[str, Snapshot], json: bool
) -> dict[str, Snapshot]:
    from uxk.subsystems.blk.iostat import FIELDS, Snapshot, extended, parse_stat

    now_ns = int((await kernel.statistics())["now_ns"])
    if not names:
        tops = [entry.name for entry in await kernel.listdir("/sys")]
        names = [entry.name for entry in await kernel.listdir("/sys/block")] if "block" in tops else []
    after = {name: parse_stat(await kernel.read(f"/sys/block/{name}/stat"), now_ns) for name in names}
    boot = Snapshot(0, (0,) * FIELDS)
    lines = {name: extended(before.get(name, boot), snapshot) for name, snapshot in after.items()}
    if json:
        print_json({"now_ns": now_ns, "disks": {name: by_name(figures) for name, figures in lines.items()}})
    else:
        print(table(lines), end="\n\n", flush=True)
    return after


def by_name(figures: Figures) -> dict[str, Any]:
    """Figures as JSON has them, under iostat's names."""
    from uxk.subsystems.blk.iostat import HEADERS, columns

    return {header: value / 100 for header, value in zip(HEADERS, columns(figures), strict=True)}


def table(lines: dict[str, Figures]) -> str:
    """The report as ``iostat -x`` prints it."""
    from uxk.subsystems.blk.iostat import HEADERS, columns

    widths = [max(len(header), 8) for header in HEADERS]
    rows = [" ".join([f"{'Device':<{_NAME_COLUMNS}}", *(f"{h:>{w}}" for h, w in zip(HEADERS, widths, strict=True))])]
    for name, figures in lines.items():
        values = (f"{value / 100:>{w}.2f}" for value, w in zip(columns(figures), widths, strict=True))
        rows.append(" ".join([f"{name:<{_NAME_COLUMNS}}", *values]))
    return "\n".join(rows)
