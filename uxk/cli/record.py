"""``uxk record block``: records what a real program does to a disk, for runs of ``uxk run lfs-gc --trace``.

Exit codes: 0 good, 1 it failed, or COMMAND did, or events were lost, 2 wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uxk.cli.common import (
    FAILED,
    GOOD,
    INTERRUPTED,
    USAGE,
    Subparsers,
    add_verb,
    complain,
    error_text,
    note,
    only_error,
    print_json,
)
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.scenario.record.session import Plan, Recording

_EPILOG: Final = """\
OUT ends in .blkparse (one line per request, as blkparse prints it) or in .npy (numbers of the 4 KiB pages written, in
order), and .gz, .bz2 or .xz behind it compresses. Needs root. COMMAND runs in the new file system, which is also
$UXK_MOUNT, and as root: bring your own sudo if it must not. Example: uxk record block --size 512MiB -o db.blkparse.xz
-- python3 bench/record/sqlite_oltp.py
"""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "record", record, help="record the block requests of a real program", epilog=_EPILOG,
                      json=True)  # fmt: skip
    parser.add_argument("what", choices=["block"], help="block: the requests that a block device's driver gets")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file to write; its ending says how")
    parser.add_argument("--fs", default="ext4", help="file system to make: ext4 (default) or xfs")
    parser.add_argument("--size", type=_size, default=2 << 30, metavar="SIZE", help="of it (default: 2GiB)")
    parser.add_argument("--mount-options", default="", metavar="OPTIONS", help="for example discard,noatime")
    parser.add_argument("--backing", type=Path, metavar="DIR", help="where its file lies meanwhile: /dev/shm is fast")
    parser.add_argument("--seconds", type=float, metavar="N", help="end COMMAND, or the recording, after N seconds")
    parser.add_argument("--device", metavar="DEV", help="record this device, which is not written to; no new volume")
    command = parser.add_argument(
        "command", nargs="+", default=[], metavar="COMMAND", help="and its arguments, after --"
    )
    command.required = False  # `*` would be satisfied with the nothing that stands between `block` and its options


def _size(text: str) -> int:
    from uxk.core.params import parse_integer

    try:
        return parse_integer(text, "bytes")
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}; expected a size like 512MiB or 2GiB") from None


def record(args: argparse.Namespace) -> int:
    """Records, writes OUT and tells what is in it."""
    import trio

    from uxk.scenario.record import session
    from uxk.scenario.record.columns import encoded, layout_of

    plan = session.Plan(
        command=tuple(args.command), fs=args.fs, size_bytes=args.size, seconds=args.seconds,
        mount_options=args.mount_options, device=args.device, backing=args.backing,
        stdout=sys.stderr.fileno() if args.json else None,
    )  # fmt: skip
    try:
        layout_of(args.out)
        _check_writable(Path(args.out))
        recording = trio.run(session.record, plan)
    except UsageError as exc:
        complain("record", error_text(exc))
        return USAGE
    except BaseExceptionGroup as group:
        error = only_error(group)
        if not isinstance(error, UsageError):
            raise
        complain("record", error_text(error))
        return USAGE
    device = recording.device
    data = encoded(recording.columns, args.out, major=device.major, minor=device.minor)
    _replace(Path(args.out), data)
    _tell(recording, args.out, len(data), json=args.json)
    return _exit_code(recording, plan)


def _check_writable(out: Path) -> None:
    """Finds out before the recording that its result can be written, not after."""
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out}: cannot be written: expected a file in a folder that exists and is writable")


def _replace(out: Path, data: bytes) -> None:
    """Writes all or nothing."""
    handle, name = tempfile.mkstemp(prefix=".uxk-record-", dir=out.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(out)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _tell(recording: Recording, out: str, out_bytes: int, *, json: bool) -> None:
    summary = recording.columns.summary()
    if json:
        facts = {**summary, "lost_events": recording.lost}
        print_json({"out": out, "out_bytes": out_bytes, "exit_code": recording.exit_code, **facts})
    else:
        for kind in ("read", "write", "discard", "flush", "other"):
            size = f"  {summary[f'{kind}_bytes']} bytes" if f"{kind}_bytes" in summary else ""
            print(f"{kind:8}{summary[f'{kind}_requests']:>10} requests{size}")
        print(
            f"{summary['written_pages']} pages of 4 KiB written, {summary['distinct_pages']} distinct: "
            f"each {summary['overwrite_ppm'] / 1e6:.1f} times in {summary['duration_us'] / 1e6:.1f} s"
        )
        print(f"{recording.lost} events lost; {out}: {out_bytes} bytes")
    for bad in recording.columns.samples:
        note(f"malformed: {bad.text!r}: {bad.reason}")
    if recording.lost:
        note(f"the kernel lost {recording.lost} events: the recording has gaps")
    if not len(recording.columns):
        note("no request was seen: was anything written, and synced, before the end?")


def _exit_code(recording: Recording, plan: Plan) -> int:
    if recording.signal is not None:
        # Ctrl-C is how a recording without an end of its own is ended.
        endless = not plan.command and plan.seconds is None
        return GOOD if endless else INTERRUPTED if recording.signal == signal.SIGINT else 128 + recording.signal
    if recording.exit_code:
        code = recording.exit_code
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        complain("record", f"{plan.command[0]} {how}; what it did until then is in the recording")
        return FAILED
    return FAILED if recording.lost or recording.columns.malformed else GOOD
