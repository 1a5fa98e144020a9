"""Binary layouts of kernel-ml-lib's structures: little-endian, naturally aligned, no hidden gaps.

Those of the reference's BPF plane have its fields and sizes.  The four that it leaves empty, the efficiency record and
the dataset descriptor (whose fields it names, but never copies anywhere) are *uxk proposals*.  :func:`c_header` writes
all of them for C, with their sizes and offsets asserted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from uxk.errors import UsageError
from uxk.uapi import mllib
from uxk.uapi.mllib import ML_LIB_BPF_NAME_MAX

REQUEST_MAGIC: Final = int.from_bytes(b"MLRQ", "little")
RECOMMENDATION_MAGIC: Final = int.from_bytes(b"MLRC", "little")
RECOMMENDATION_STANDING: Final = 1
"""Flag: in force until its time is over or the next one comes; without it one decision uses it up."""
FEEDBACK_APPLIED: Final = 0
FEEDBACK_REFUSED: Final = 1

_CODES: Final = {"u32": ("I", 4, "__u32"), "s32": ("i", 4, "__s32"), "u64": ("Q", 8, "__u64"), "s64": ("q", 8, "__s64")}
_RANGES: Final = {"u32": (0, 1 << 32), "s32": (-1 << 31, 1 << 31), "u64": (0, 1 << 64), "s64": (-1 << 63, 1 << 63)}


class Field(NamedTuple):
    """One member: a number, or with a ``length`` so many bytes of text, padded with NUL."""

    name: str
    kind: str
    offset: int
    length: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return self.length or _CODES[self.kind][1]


class Layout:
    """One structure.  ``fields`` are ``name:u32`` and the like, or ``name:64`` for text."""

    def __init__(self, name: str, fields: str, what: str, *, proposal: bool = False) -> None:
        self.name = name
        self.what = what
        self.proposal = proposal
        found, offset = list[Field](), 0
        for word in fields.split():
            member, _, kind = word.partition(":")
            field = Field(member, "char", offset, int(kind)) if kind.isdigit() else Field(member, kind, offset)
            if offset % (1 if field.length else field.size_bytes):
                raise ValueError(f"struct {name}: {member} at {offset} would leave a gap in C")
            found.append(field)
            offset += field.size_bytes
        widest = max(1 if field.length else field.size_bytes for field in found)
        if offset % widest:
            raise ValueError(f"struct {name}: {offset} bytes, expected a multiple of {widest}")
        self.fields = tuple(found)
        self.size_bytes = offset
        self._struct = struct.Struct(
            "<" + "".join(f"{field.length}s" if field.length else _CODES[field.kind][0] for field in found)
        )

    def pack(self, **values: int | str) -> bytes:
        """The bytes; what is not named is 0.  EINVAL for an unknown name, a number out of range, text too long."""
        if unknown := sorted(values.keys() - {field.name for field in self.fields}):
            raise UsageError(f"struct {self.name}: no member {', '.join(unknown)}")
        return self._struct.pack(*(self._checked(field, values.get(field.name, 0)) for field in self.fields))

    def _checked(self, field: Field, value: int | str) -> int | bytes:
        where = f"struct {self.name}: {field.name}"
        if field.length:
            raw = (value or "").encode() if isinstance(value, str) or not value else None
            if raw is None or len(raw) >= field.length or b"\0" in raw:
                raise UsageError(f"{where}={value!r}: expected text of at most {field.length - 1} bytes")
            return raw
        least, end = _RANGES[field.kind]
        if not isinstance(value, int) or not least <= value < end:
            raise UsageError(f"{where}={value!r}: expected a {field.kind}")
        return int(value)

    def unpack(self, data: bytes) -> dict[str, int | str]:
        """Members by name, from the beginning of ``data``.  EINVAL if there are too few bytes, or text is none."""
        if len(data) < self.size_bytes:
            raise UsageError(f"struct {self.name}: {len(data)} bytes, expected {self.size_bytes}")
        values = self._struct.unpack_from(data)
        return {field.name: self._read(field, value) for field, value in zip(self.fields, values, strict=True)}

    def _read(self, field: Field, value: int | bytes) -> int | str:
        if isinstance(value, int):
            return value
        try:
            return value.partition(b"\0")[0].decode()
        except UnicodeDecodeError as exc:
            raise UsageError(f"struct {self.name}: {field.name}: {exc}") from None


_NAME: Final = ML_LIB_BPF_NAME_MAX
_EVENT: Final = "type:u32 model_id:u32 old_value:u32 new_value:u32 error:s32 reserved:u32 timestamp:u64"

COMMAND: Final = Layout("ml_lib_bpf_cmd_ctx", "model_id:u32 command:u32", "A command for a model.")
MODEL_INFO: Final = Layout(
    "ml_lib_bpf_model_info",
    f"model_id:u32 mode:u32 state:u32 dataset_type:u32 dataset_state:u32 subsystem_name:{_NAME} model_name:{_NAME}",
    "A model, and the first of its datasets.",
)
EVENT: Final = Layout("ml_lib_bpf_event", _EVENT, "What happened to a model; the timestamp is the kernel's, in ns.")
TEST_DEV_STATS: Final = Layout(
    "ml_lib_bpf_test_dev_stats", "buffer_size:u64 data_size:u64 access_count:u64 read_count:u64 write_count:u64",
    "Counters of the test device.",
)  # fmt: skip
DATASET: Final = Layout(
    "ml_lib_dataset", "type:u32 state:u32 allocated_size:u64 portion_offset:u64 portion_size:u32 reserved:u32",
    "A dataset's descriptor; sizes and offsets in bytes.", proposal=True,
)  # fmt: skip
REQUEST: Final = Layout(
    "ml_lib_user_space_request",
    f"magic:u32 model_id:u32 command:u32 portion_size:u32 portion_offset:u64 dataset_name:{_NAME}",
    "User space asks for something: a command, for one dataset if it is named.", proposal=True,
)  # fmt: skip
NOTIFICATION: Final = Layout(
    "ml_lib_user_space_notification", f"{_EVENT} sequence:u64 dropped:u64",
    "The kernel tells of an event: its number from 0, and how many before it this reader has missed.", proposal=True,
)  # fmt: skip
RECOMMENDATION: Final = Layout(
    "ml_lib_user_space_recommendation",
    "magic:u32 flags:u32 generation:u64 ttl_ns:u64 dataset_id:u64 dataset_generation:u64 predicted:s64 "
    "payload_size:u32 reserved:u32",
    "A hint; payload_size bytes in the subsystem's own format follow.", proposal=True,
)  # fmt: skip
FEEDBACK: Final = Layout(
    "ml_lib_backpropagation_feedback",
    "hint:u64 predicted:s64 outcome:s64 baseline:s64 dataset_id:u64 dataset_generation:u64 status:u32 reserved:u32",
    "What became of a hint: status 0, applied; 1, refused.", proposal=True,
)  # fmt: skip
EFFICIENCY: Final = Layout(
    "ml_lib_efficiency",
    "model_id:u32 mode:u32 epoch:u64 default_kpi:u64 hinted_kpi:u64 weight:u64 hinted_weight:u64 efficiency_ppm:s64 "
    "saved_ppm:s64 loss_ppm:s64",
    "Efficiency after an epoch: what both arms did in it (0: nothing), and the sums.", proposal=True,
)  # fmt: skip

LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType({
    each.name: each
    for each in (
        COMMAND, MODEL_INFO, EVENT, TEST_DEV_STATS, DATASET, REQUEST, NOTIFICATION, RECOMMENDATION, FEEDBACK,
        EFFICIENCY,
    )
})  # fmt: skip
"""Every structure by its name in C."""


def c_header() -> str:
    """A header for C11: enumerations, ioctl numbers, structures, and an assertion for every size and offset."""
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        "/* Names and values of kernel-ml-lib, and uxk's proposals for what it leaves empty. */",
        "/* Made by uxk.uapi.mllibabi.c_header(); see docs/kernel-ml-lib.md. */",
        "#ifndef UXK_ML_LIB_H", "#define UXK_ML_LIB_H", "", "#include <stddef.h>", "#include <linux/types.h>", "",
    ]  # fmt: skip
    for name, values in mllib.ENUMS.items():
        body = ", ".join(f"{member} = {value}" for member, value in values.items())
        lines += [f"enum {name} {{ {body} }};"]
    lines.append("")
    for name in sorted(vars(mllib)):
        if name.startswith("ML_LIB_TEST_DEV_IOC") and not name.endswith("MAGIC"):
            lines.append(f"#define {name} {vars(mllib)[name]:#x}u")
    for name in ("REQUEST_MAGIC", "RECOMMENDATION_MAGIC", "RECOMMENDATION_STANDING"):
        lines.append(f"#define ML_LIB_{name} {globals()[name]:#x}u")
    for layout in LAYOUTS.values():
        lines += ["", *_c_struct(layout)]
    return "\n".join([*lines, "", "#endif", ""])


def _c_struct(layout: Layout) -> list[str]:
    text = f"uxk proposal: {layout.what}" if layout.proposal else layout.what
    lines = [f"/* {text} */", f"struct {layout.name} {{"]
    lines += [
        f"\tchar {field.name}[{field.length}];" if field.length else f"\t{_CODES[field.kind][2]} {field.name};"
        for field in layout.fields
    ]
    name = f"struct {layout.name}"
    lines += ["};", f'_Static_assert(sizeof({name}) == {layout.size_bytes}, "size");']
    for field in layout.fields:
        lines.append(f'_Static_assert(offsetof({name}, {field.name}) == {field.offset}, "{field.name}");')
    return lines
