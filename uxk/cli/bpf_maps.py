"""``uxk bpf map dump``, ``lookup``, ``getnext``, ``update`` and ``delete``: elements of maps of a running kernel."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.bpf_words import ROOT, Words, one, words_of
from uxk.cli.common import UsageExit, with_kernel
from uxk.errors import UxkError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

ASKED_MAX: Final = 100
"""Times that a question is asked which somebody else's keeps overtaking."""
FLAGS: Final = ("any", "exist", "noexist")


async def _ask(kernel: ControlClient, path: str, question: str) -> list[str]:
    """The lines of an answer: whoever asks in between gets ours, or we get theirs, which tells itself apart."""
    for _ in range(ASKED_MAX):
        await kernel.write(path, question)
        first, *lines = (await kernel.read(path)).split("\n")
        if first == question:
            return lines
    raise UxkError(f"{path}: others keep asking there; try again")


async def _walk(kernel: ControlClient, path: str, prefix: str, start: str) -> dict[str, bytes]:
    """All elements from ``start`` on, by key; the kernel tells them in parts."""
    found: dict[str, bytearray] = {}
    at = start
    while True:
        *lines, last = await _ask(kernel, path, f"{prefix}{at}")
        for line in lines:
            key, byte, digits = line.split(" ")
            found.setdefault(key, bytearray())[int(byte) :] = bytes.fromhex(digits)
        if last == "end":
            return {key: bytes(value) for key, value in found.items()}
        if last == at:
            raise UxkError(f"{path}: a key is longer than what the kernel shows at once")
        at = last


def _elements(found: dict[str, bytes]) -> list[dict[str, Any]]:
    """``key``, ``value``, and of per-instance arrays ``instance``."""
    made: list[dict[str, Any]] = []
    for name, value in found.items():
        key, slash, instance = name.partition("/")
        made.append({"key": bytes.fromhex(key), "value": value, **({"instance": int(instance)} if slash else {})})
    return made


def dump(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All elements."""
    words = words_of(args)
    handle = words.handle("map")
    words.end()

    async def read(kernel: ControlClient) -> dict[str, bytes]:
        return await _walk(kernel, f"{ROOT}/map/{await one(kernel, 'map', handle)}/page", "", "0 0")

    return _elements(with_kernel(args, read))


def lookup(args: argparse.Namespace) -> dict[str, Any] | list[dict[str, Any]]:
    """The element of a key; of per-instance arrays, a list of every instance's."""
    words = words_of(args)
    handle, key = words.handle("map"), _key(words)
    words.end()

    async def read(kernel: ControlClient) -> dict[str, bytes]:
        path, made, at = f"{ROOT}/map/{await one(kernel, 'map', handle)}/lookup", dict[str, bytes](), 0
        while True:
            *lines, last = await _ask(kernel, path, f"{key.hex()} {at}" if at else key.hex())
            for line in lines:
                name, _, digits = line.split(" ")
                made[name] = made.get(name, b"") + bytes.fromhex(digits)
            row, _, byte = last.partition(" ")
            if last == "end":
                return made
            if row != "0":
                raise UxkError(f"{path}: too many instances to show at once; `map dump` shows all")
            at = int(byte)

    found = _elements(with_kernel(args, read))
    return found if any("instance" in each for each in found) else found[0]


def getnext(args: argparse.Namespace) -> dict[str, bytes]:
    """The key after another, or the first."""
    words = words_of(args)
    handle = words.handle("map")
    key = _key(words) if words.left() else b""
    words.end()

    async def read(kernel: ControlClient) -> bytes:
        path = f"{ROOT}/map/{await one(kernel, 'map', handle)}/next"
        return bytes.fromhex((await _ask(kernel, path, key.hex()))[0])

    return {**({"key": key} if key else {}), "next_key": with_kernel(args, read)}


def update(args: argparse.Namespace) -> None:
    """Another value."""
    words = words_of(args)
    handle, key = words.handle("map"), _key(words)
    if not words.accept("value"):
        raise UsageExit(f"{words.verb}: expected `value` and its bytes")
    value = words.data("value", *FLAGS)
    flag = words.take("a flag") if words.next_is(*FLAGS) else "any"
    words.end()

    async def write(kernel: ControlClient) -> None:
        await kernel.write(f"{ROOT}/map/{await one(kernel, 'map', handle)}/update", f"{key.hex()} {value.hex()} {flag}")

    with_kernel(args, write)


def delete(args: argparse.Namespace) -> None:
    """An element less."""
    words = words_of(args)
    handle, key = words.handle("map"), _key(words)
    words.end()

    async def write(kernel: ControlClient) -> None:
        await kernel.write(f"{ROOT}/map/{await one(kernel, 'map', handle)}/delete", key.hex())

    with_kernel(args, write)


def _key(words: Words) -> bytes:
    if not words.accept("key"):
        raise UsageExit(f"{words.verb}: expected `key` and its bytes")
    return words.data("key", "value")
