"""The attribute ``namespaces``: what namespaces there are, and ``add SIZE`` or ``rm NSID`` to change that by hand.

``namespaces_status`` counts the writes and says what came of the last one, ``"2 ok"`` or ``"3 error: ..."``.
"""

from __future__ import annotations

import re
from typing import Final

import uxk
from uxk_nvme.namespaces import LBA_SHIFTS
from uxk_nvme.spec import Refused, Status
from uxk_nvme.subsystem import Subsystem

_SIZE: Final = re.compile(r"(\d{1,18})([KMGT]i?)?B?", re.ASCII)
_POWERS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_WHY: Final = {
    Status.INSUFFICIENT_CAPACITY: "not enough unallocated capacity",
    Status.NO_NAMESPACE_IDENTIFIER: "no namespace identifier is free",
}


class NamespaceControl:
    """Publishes the attribute, and acts on what is written to it.  New namespaces have blocks of ``1 << shift``."""

    def __init__(self, ctx: uxk.Context, subsystem: Subsystem, shift: int) -> None:
        assert shift in LBA_SHIFTS
        self._ctx = ctx
        self._subsystem = subsystem
        self._shift = shift
        self._writes = 0
        self._outcome = "ok"

    def publish(self) -> None:
        """One line for each namespace; the last one for what is left."""
        spaces = self._subsystem.namespaces
        lines = [
            f"{each.nsid} size_bytes={each.size_bytes} lba_bytes={1 << each.shift} uuid={each.uuid.hex()} "
            f"controllers={','.join(map(str, each.attached)) or 'none'}"
            for each in spaces.table.values()
        ]
        lines.append(f"unallocated_bytes={spaces.unallocated_bytes}")
        self._ctx.set_attribute("namespaces", "\n".join(lines)[:4000], writable=True)
        self._ctx.set_attribute("namespaces_status", f"{self._writes} {self._outcome}")

    def store(self, value: bytes) -> None:
        """A write; a mistake is shown in ``namespaces_status``, and logged."""
        self._writes += 1
        self._outcome = "ok"
        try:
            self._act(value.decode(errors="replace").split())
        except uxk.UxkError as exc:
            self._outcome = f"error: {exc.args[0]}"[:1000]
            self._ctx.log(self._outcome, level=4)
        self.publish()

    def _act(self, words: list[str]) -> None:
        match words:
            case ["add", size]:
                self._add(_bytes_of(size))
            case ["rm", nsid] if nsid.isdecimal() and len(nsid) < 6:
                self._remove(int(nsid))
            case _:
                raise uxk.UsageError(f"namespaces: {' '.join(words)[:80]!r}: expected add SIZE or rm NSID")

    def _add(self, size_bytes: int) -> None:
        subsystem = self._subsystem
        if not size_bytes or size_bytes & (1 << self._shift) - 1:
            raise uxk.UsageError(f"namespaces: add {size_bytes}: expected a multiple of {1 << self._shift} bytes")
        try:
            made = subsystem.namespaces.create(size_bytes >> self._shift, self._shift)
        except Refused as refusal:
            why = _WHY.get(Status(refusal.status & 0x7FF), str(refusal))
            left = subsystem.namespaces.unallocated_bytes
            raise uxk.UsageError(f"namespaces: add {size_bytes}: {why}, {left} bytes are left") from None
        subsystem.attach(made, list(subsystem.controllers), attach=True)

    def _remove(self, nsid: int) -> None:
        found = self._subsystem.namespaces.table.get(nsid)
        if found is None:
            known = ", ".join(map(str, self._subsystem.namespaces.table)) or "none"
            raise uxk.UsageError(f"namespaces: rm {nsid}: no such namespace, there are: {known}")
        self._subsystem.delete(found, self._ctx.now_ns)


def _bytes_of(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise uxk.UsageError(f"namespaces: size {text[:80]!r}: expected a number of bytes, such as 64MiB")
    unit = (found[2] or "").removesuffix("i")
    return int(found[1]) << _POWERS[unit]
