"""``uxk cat``, ``echo``, ``ls``, ``tree``: the kernel's /sys, /proc/sys and /dev."""

from __future__ import annotations

import argparse
import stat
from typing import TYPE_CHECKING, Any

from uxk.cli.common import FAILED, GOOD, Subparsers, add_verb, clean, complain, error_text, print_json, with_kernel
from uxk.errors import TreeError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient
    from uxk.uapi.control import TreeEntry


def register(subparsers: Subparsers) -> None:
    """Adds the verbs."""
    parser = add_verb(subparsers, "cat", cat, kernel=True, help="print attributes", json=True)
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser = add_verb(subparsers, "echo", echo, kernel=True, help="write VALUE to an attribute")
    parser.add_argument("value", metavar="VALUE", help="put `--` before one that begins with a dash")
    parser.add_argument("path", metavar="PATH")
    parser = add_verb(subparsers, "ls", ls, kernel=True, help="list a directory", json=True)
    parser.add_argument("-l", dest="long", action="store_true", help="with mode, size, and where links point")
    parser.add_argument("path", metavar="PATH")
    parser = add_verb(subparsers, "tree", tree, kernel=True, help="show a directory and all below it", json=True)
    parser.add_argument("-v", "--values", action="store_true", help="with the first line of each attribute")
    parser.add_argument("path", metavar="PATH", nargs="?", default="/")


def cat(args: argparse.Namespace) -> int:
    """Prints each; goes on after one that cannot be read."""

    async def show(kernel: ControlClient) -> int:
        code, values = GOOD, dict[str, str]()
        for path in args.paths:
            try:
                text = values[path] = await kernel.read(path)
            except TreeError as exc:
                complain("cat", error_text(exc))
                code = FAILED
                continue
            if not args.json and text:
                print(text)
        if args.json:
            print_json(values)
        return code

    return with_kernel(args, show)


def echo(args: argparse.Namespace) -> int:
    """Writes one attribute."""
    with_kernel(args, lambda kernel: kernel.write(args.path, args.value))
    return GOOD


def ls(args: argparse.Namespace) -> int:
    """A directory's entries, or the attribute itself."""

    async def show(kernel: ControlClient) -> tuple[TreeEntry, ...]:
        entry = await kernel.stat(args.path)
        return (entry,) if entry.kind == "file" else await kernel.listdir(args.path)

    entries = with_kernel(args, show)
    if args.json:
        print_json(entries)
        return GOOD
    for entry in entries:
        print(long_line(entry) if args.long else clean(entry.name))
    return GOOD


def long_line(entry: TreeEntry) -> str:
    """Mode, size, name, and where a link points."""
    kind = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK}[entry.kind]
    name = clean(entry.name) + (f" -> {clean(entry.target)}" if entry.kind == "link" else "")
    return f"{stat.filemode(kind | entry.mode)} {entry.size_bytes:>5} {name}"


def tree(args: argparse.Namespace) -> int:
    """A picture, or with ``--json`` nested objects."""
    if args.json:
        print_json(with_kernel(args, lambda kernel: _nested(kernel, args.path, args.values)))
    else:
        print(with_kernel(args, lambda kernel: kernel.render(args.path, values=args.values)))
    return GOOD


async def _nested(kernel: ControlClient, path: str, values: bool) -> dict[str, Any]:
    """A directory as ``{name: content}``: objects for directories, targets for links, values or null for files."""
    found: dict[str, Any] = {}
    for entry in await kernel.listdir(path):
        below = f"{path.rstrip('/')}/{entry.name}"
        try:
            if entry.kind == "dir":
                found[entry.name] = await _nested(kernel, below, values)
            elif entry.kind == "link":
                found[entry.name] = {"link": entry.target}
            else:
                found[entry.name] = await kernel.read(below) if values else None
        except TreeError as exc:  # gone meanwhile, or not readable
            found[entry.name] = {"error": exc.errno_name}
    return found
