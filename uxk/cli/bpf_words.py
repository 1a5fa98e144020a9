"""The words of ``uxk bpf prog`` and ``uxk bpf map``, after bpftool's: which program or map, keys and values, files."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uxk.cli.common import UsageExit, instead
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

ROOT: Final = "/sys/fs/bpf"
DATA_MAX_BYTES: Final = 1 << 20
"""Of a file with what a program is to look at; the kernel takes less."""
NOUN: Final[Mapping[str, str]] = {"prog": "program", "map": "map"}
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "prog": ("id", "name", "tag", "pinned"),
    "map": ("id", "name", "pinned"),
}


class Words:
    """The words behind ``prog show`` and so on, taken one by one."""

    def __init__(self, verb: str, words: Sequence[str]) -> None:
        self.verb, self._words = verb, list(words)

    def left(self) -> int:
        """How many there are still."""
        return len(self._words)

    def next_is(self, *keywords: str) -> bool:
        """Whether one of these comes next."""
        return bool(self._words) and self._words[0] in keywords

    def accept(self, keyword: str) -> bool:
        """Takes a keyword, if it comes next."""
        if not self.next_is(keyword):
            return False
        self._words.pop(0)
        return True

    def take(self, expected: str) -> str:
        """The next word.  UsageExit if there is none."""
        if not self._words:
            raise UsageExit(f"{self.verb}: too few words; expected {expected}")
        return self._words.pop(0)

    def number(self, expected: str, most: int) -> int:
        """A number from 1 to ``most``."""
        word = self.take(expected)
        if not (word.isascii() and word.isdecimal() and len(word) < 19 and 1 <= int(word) <= most):
            raise UsageExit(f"{self.verb}: {word!r}: expected {expected}, a number from 1 to {most}")
        return int(word)

    def data(self, what: str, *stops: str) -> bytes:
        """Bytes: ``1 0 0xff``, each a number, or ``hex 01 00 ff``, or ``hex 0100ff``; up to one of ``stops``."""
        base, found = 16 if self.accept("hex") else 0, bytearray()
        taken: list[str] = []
        while self._words and not self.next_is(*stops):
            taken.append(self._words.pop(0))
        for word in taken:
            try:
                if base:
                    found += bytes.fromhex(word.removeprefix("0x").zfill(2))
                else:
                    found.append(int(word, 0))
            except ValueError:
                expected = "hexadecimal digits" if base else "a byte, 0 to 255 (hexadecimal digits after `hex`)"
                raise UsageExit(f"{self.verb}: {what}: {word[:40]!r}: expected {expected}") from None
        if not taken:
            raise UsageExit(f"{self.verb}: {what}: expected its bytes, as in `{what} 1 0 0 0` or `{what} hex 01000000`")
        return bytes(found)

    def handle(self, folder: str) -> tuple[str, str]:
        """Which program or map: ``("id", "1")``, from ``1``, ``id 1``, ``name N``, ``tag T`` or ``pinned N``."""
        kinds = _KINDS[folder]
        expected = f"a number, as `show` prints them, or {', '.join(kinds)} and a word"
        word = self.take(expected)
        if word in kinds:
            kind, word = word, self.take(f"a word behind {word!r}")
        else:
            kind = "id"
        if kind == "id" and not (word.isascii() and word.isdecimal() and len(word) < 19):
            raise UsageExit(f"{self.verb}: {word!r}: expected {expected}")
        return kind, pin_name(word) if kind == "pinned" else str(int(word)) if kind == "id" else word

    def end(self) -> None:
        """UsageExit if there are words left."""
        if self._words:
            raise UsageExit(f"{self.verb}: {self._words[0]!r}: expected nothing more")


def pin_name(word: str) -> str:
    """The name of a pin, which may be given as a path, as bpftool wants it."""
    return word.removeprefix(f"{ROOT}/").removeprefix("pinned/")


def words_of(args: argparse.Namespace) -> Words:
    """What the command line has behind the verb."""
    return Words(f"{args.folder} {args.what}", args.words)


def file_bytes(name: str) -> bytes:
    """What is in a file; ``-`` is standard input."""
    if name == "-":
        data = sys.stdin.buffer.read(DATA_MAX_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(DATA_MAX_BYTES + 1)
    if len(data) > DATA_MAX_BYTES:
        raise UsageError(f"{name}: more than {DATA_MAX_BYTES} bytes", errno=errno.E2BIG)
    return data


# --- in the running kernel ----------------------------------------------------------------------------


async def entries(kernel: ControlClient, folder: str) -> list[str]:
    """The names in a folder of ``/sys/fs/bpf``, which need not be there."""
    path = "/sys"
    for name in ("fs", "bpf", *folder.split("/")):
        if name not in [entry.name for entry in await kernel.listdir(path)]:
            return []
        path = f"{path}/{name}"
    return [entry.name for entry in await kernel.listdir(path)]


async def ids(kernel: ControlClient, folder: str) -> list[str]:
    """Numbers of programs, or of maps."""
    return sorted(await entries(kernel, folder), key=int)


async def find(kernel: ControlClient, folder: str, handle: tuple[str, str]) -> list[str]:
    """The numbers that are meant, one at least.  UsageError (ENOENT), with what there is, if there is none."""
    kind, word = handle
    known, noun = await ids(kernel, folder), NOUN[folder]
    if kind == "id":
        if word not in known:
            raise UsageError(f"no {noun} {word}; there are: {', '.join(known) or 'none'}", errno=errno.ENOENT)
        return [word]
    attribute = "pins" if kind == "pinned" else kind
    values = {number: (await kernel.read(f"{ROOT}/{folder}/{number}/{attribute}")).split("\n") for number in known}
    found = [number for number in known if word in values[number]]
    if not found:
        there = {value for each in values.values() for value in each if value}
        raise UsageError(f"no {noun} of {_WHICH[kind]} {word!r}{instead(word, there)}", errno=errno.ENOENT)
    return found


_WHICH: Final = {"name": "name", "tag": "tag", "pinned": "pin"}


async def one(kernel: ControlClient, folder: str, handle: tuple[str, str]) -> str:
    """The number that is meant, as :func:`find`.  UsageError (EINVAL) if there are several."""
    found = await find(kernel, folder, handle)
    if len(found) > 1:
        raise UsageError(
            f"several {NOUN[folder]}s have the {handle[0]} {handle[1]!r}: {', '.join(found)}; expected one"
        )
    return found[0]
