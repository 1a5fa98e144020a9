"""docs/wire-protocol.md: every message and entry is there, and what the page shows of them is what the code sends.

Between ``<!-- wire: NAME -->`` and ``<!-- /wire -->`` stands what is made here; ``UXK_UPDATE_DOCS=1`` writes it anew.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import msgspec.inspect as mi
import pytest

from uxk import limits
from uxk.actor import wire
from uxk.uapi import entries as e
from uxk.uapi.manifest import Sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/wire-protocol.md"
MARKED = re.compile(r"(<!-- wire: (\S+) -->\n)(.*?)(<!-- /wire -->)", re.DOTALL)
BYTES_IN_LINE = 16

NAMES = {"OUTPUT": "Out"} | {cls.__name__.upper(): cls.__name__ for cls in wire.Message.__subclasses__()}
"""Messages as docstrings call them."""


def frame(*entries: e.Entry) -> bytes:
    return msgspec.msgpack.encode(list(entries))


FROM_KERNEL: tuple[wire.FromKernel, ...] = (
    wire.Start(
        version=1, name="cramdisk", instance=1, seed=7, depth=64, now_ns=0,
        params=msgspec.msgpack.encode({"size": 4096}), device="cramdisk0", module="", qualname="",
        file="/srv/ramdisk.toml", search=(), held=True, boot_ns=0, memory_bytes=1 << 30, sandbox=Sandbox(),
    ),
    wire.Turn(1000, [frame(e.Request(1, e.Op.READ, b"", 512, 8))], []),
    wire.Settle(1000, take=True),
    wire.Stop("rmmod"),
    wire.Mapped(1 << 40 | 1, 4096, 0, True, region=1, generation=1),
    wire.Refuse("HELLO with versions 7 to 9, this kernel speaks 1 to 1"),
    wire.Unmap([1 << 40 | 2], []),
    wire.Checkpoint(),
)  # fmt: skip
FROM_CHILD: tuple[wire.FromChild, ...] = (
    wire.Hello("uxk", 1, 1, "ramdisk.c"),
    wire.Out(1, [(frame(e.Completion(1, 0, 8, b"8 bytes!")), 1)], [], None, False, 25_000),
    wire.Crashed("turn", "Oops", "the medium is on fire", "", 5),
    wire.Map(1 << 40 | 1, True),
    wire.Dirty(),
    wire.Saved(2, 1, b"state"),
)
DOWN: tuple[e.Entry, ...] = (
    e.Request(1, e.Op.WRITE, b"data", 512, 4), e.Event("store", "limit", b"17"), e.Ping(3), e.Stop("rmmod"),
)  # fmt: skip
REPLIES: tuple[e.Entry, ...] = (e.Completion(1, 0, 4), e.Pong(3))
UP: tuple[e.Entry, ...] = (
    e.Submit(1, 1 << 40 | 1, e.Op.READ, offset=512, length=8), e.Ready(), e.Log(6, "hello", {"at": 7}),
    e.Open(2, "device", "null0", 4), e.Derive(3, 1 << 40 | 1, "other", 1), e.Revoke(4, 1 << 40 | 2),
    e.Allocate(5, 65_536, "medium"), e.Free(6, 1 << 40 | 1), e.Acquire(7, 1 << 40 | 3), e.Release(8, 1 << 40 | 3, 1),
    e.Publish(9, 1 << 40 | 4, b"new"), e.Pin(10, 1 << 40 | 4), e.Unpin(11, 1 << 40 | 4, 2),
    e.TreeRead(12, "/sys/kernel/uptime_ns"), e.TreeWrite(13, "/proc/sys/vm/x", "1"), e.SetAttribute("count", "19"),
    e.AddDevice(14, "disk0", {"capacity_bytes": "4096"}), e.RemoveDevice(15, "disk0"), e.AddChardev(16, "tty0"),
    e.SetPoll("tty0", 1), e.FollowKmsg(17, 4), e.Hint(18, "lfs-gc", 3, 1000, b"\x01"), e.Charge(500),
    e.Model(19, "lfs-gc", 1), e.RecommendSysctl(20, "vm/x", "1"), e.SettleAction(21, 1),
    e.OfferSite(22, "disk0.pick"), e.EndEpoch(23, "disk0.pick", 10, 9, 4, 4),
    e.RecommendBuild(24, "store", {"cache": 64}, "hot"), e.FillDataset(25, "disk0.pick", b"\x07"),
    e.InjectPolicy(26, "disk0.pick", b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0"), e.JudgePolicy(27, 1, 0, bytes(8)),
    e.UpdatePolicy(28, 1, b"\x01"), e.LoadProgram(29, "queue/disk0", b"\x95\0\0\0\0\0\0\0", ((8, 1),)),
)  # fmt: skip


# --- words -----------------------------------------------------------------------------------------------


def kind(info: mi.Type) -> str:
    """A field's type, as a program that reads or writes it needs to know it."""
    match info:
        case mi.IntType():
            low = info.ge if info.ge is not None else None
            if (low, info.le) in ((None, None), (0, None), (0, limits.I64_MAX)):
                return "uint"
            return "int" if low == -limits.I64_MAX else f"uint, {low} to {info.le}"
        case mi.StrType():
            return "str" + (f", at most {info.max_length} characters" if info.max_length else "")
        case mi.BytesType():
            return "bin" + (f", at most {info.max_length} bytes" if info.max_length else "")
        case mi.BoolType():
            return "bool"
        case mi.ListType() | mi.VarTupleType():
            return f"array of {kind(info.item_type)}"
        case mi.TupleType():
            return f"[{', '.join(map(kind, info.item_types))}]"
        case mi.DictType():
            return f"map from {kind(info.key_type)} to {kind(info.value_type)}"
        case mi.UnionType():
            return " or ".join(kind(each) for each in info.types)
        case mi.NoneType():
            return "nil"
        case mi.StructType():
            return "map"
        case mi.Metadata():
            return kind(info.type)
    raise AssertionError(f"no word for {info}")


def field_docs(cls: type) -> dict[str, str]:
    """The docstring behind each field that has one."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    docs: dict[str, str] = {}
    for item, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[ast.unparse(item.target)] = plain(str(after.value.value))
    return docs


def plain(text: str | None) -> str:
    """A docstring on one line, as Markdown, with messages by the names that the page has for them."""
    words = " ".join(inspect.cleandoc(text or "").split()).replace("None", "nil").replace("True", "true")
    words = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", words).replace("``", "`").replace("|", r"\|")
    return re.sub(rf"\b({'|'.join(NAMES)})\b", lambda found: f"`{NAMES[found[1]]}`", words)


def fields_of(cls: type[msgspec.Struct]) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each field."""
    for field in mi.type_info(cls).fields:  # type: ignore[attr-defined]
        yield field.encode_name, kind(field.type), "" if field.required else default(field.default)


def default(value: Any) -> str:
    """The value of a field that is left out."""
    if value is None:
        return "nil"
    return "empty" if not isinstance(value, (int, str)) or value == "" else str(value).lower()


def hexadecimal(data: bytes) -> str:
    """As a dump, without addresses."""
    lines = (data[at : at + BYTES_IN_LINE].hex(" ") for at in range(0, len(data), BYTES_IN_LINE))
    return "\n".join(lines)


def tag_of(cls: type[msgspec.Struct]) -> int:
    tag = cls.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


# --- what the page shows ---------------------------------------------------------------------------------


def messages(examples: Sequence[wire.Message]) -> str:
    """A heading, a table and an example for each message."""
    return "\n\n".join(section(message) for message in sorted(examples, key=lambda each: tag_of(type(each))))


def section(message: wire.Message) -> str:
    cls = type(message)
    docs = field_docs(cls)
    lines = [f"### {tag_of(cls)}: {cls.__name__}", "", plain(cls.__doc__), ""]
    rows = [f"| `{name}` | {text} | {absent} | {docs.get(name, '')} |" for name, text, absent in fields_of(cls)]
    if rows:
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    return "\n".join([*lines, "```text", shown(message), hexadecimal(wire.packed(message)), "```"])


def shown(message: wire.Message) -> str:
    """The message as an array, with its number first; bytes in hexadecimal."""

    def text(value: Any) -> str:
        if isinstance(value, bytes):
            return f"<{value.hex()}>"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{text(key)}: {text(each)}" for key, each in value.items()) + "}"
        return msgspec.json.encode(value).decode()

    decoded = msgspec.msgpack.decode(wire.packed(message)[wire.HEADER_BYTES :])
    return "\n".join(textwrap.wrap(text(decoded).replace("null", "nil"), 110, subsequent_indent="  "))


def entries(examples: Sequence[e.Entry]) -> str:
    """A row for each example."""
    rows = []
    for entry in examples:
        fields = ", ".join(
            f"`{name}` {text}" + (f" = {absent}" if absent else "") for name, text, absent in fields_of(type(entry))
        )
        data = " ".join([msgspec.msgpack.encode(entry).hex(" ")])
        rows.append(f"| {tag_of(type(entry))} | `{type(entry).__name__}` | {fields} | `{data}` |")
    return "\n".join(["| tag | entry | fields | for example |", "| --- | --- | --- | --- |", *rows])


PARTS: dict[str, Callable[[], str]] = {
    "from-kernel": lambda: messages(FROM_KERNEL),
    "from-program": lambda: messages(FROM_CHILD),
    "down": lambda: entries(DOWN),
    "replies": lambda: entries(REPLIES),
    "up": lambda: entries(UP),
}


def test_the_page_shows_what_is_sent() -> None:
    text = PAGE.read_text("utf-8")
    assert {found[2] for found in MARKED.finditer(text)} == set(PARTS)
    wanted = MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[4]}", text)
    if os.environ.get("UXK_UPDATE_DOCS"):
        PAGE.write_text(wanted, "utf-8")
        text = wanted
    assert wanted == text


@pytest.mark.parametrize(
    ("examples", "union"),
    [(FROM_KERNEL, wire.FromKernel), (FROM_CHILD, wire.FromChild), (DOWN, e.Down), (REPLIES, e.DownReply), (UP, e.Up)],
    ids=["from-kernel", "from-program", "down", "replies", "up"],
)
def test_nothing_is_missing(examples: Sequence[msgspec.Struct], union: Any) -> None:
    assert {type(each) for each in examples} == set(get_args(union))


def test_the_examples_are_understood_by_the_other_side() -> None:
    for examples, union in ((FROM_KERNEL, wire.FromKernel), (FROM_CHILD, wire.FromChild)):
        reader: wire.Reader[Any] = wire.Reader(union)
        data = b"".join(map(wire.packed, examples))
        reader.room()[: len(data)] = data
        assert reader.filled(len(data)) == list(examples)
