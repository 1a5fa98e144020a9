"""What the module shows and takes in sysfs: health, counters, latencies; power loss, health to pretend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import uxk
from uxk_nvme.spec import Admin, Io, Vendor
from uxk_nvme.subsystem import Subsystem

INTERVAL_NS: Final = 100_000_000
"""Figures are written at most so often while commands come."""


class Figures:
    """Attributes ``smart``, ``medium``, ``commands``, ``latency``, ``controllers``; and those that do something.

    ``refresh`` (write anything): all figures as of now.  ``power_loss`` (write anything): what is cached is lost.
    ``extra_latency_ns`` (a number): added to every I/O command.  ``smart_set`` (``field=value``, ``field=``): pretends.
    ``control`` (``slow_die DIE PPM``, ``slow_channel CHANNEL PPM``, ``throttle LEVEL``): what is wrong with the flash;
    ``control_status`` counts these writes and says what came of the last one.
    """

    def __init__(self, ctx: uxk.Context, subsystem: Subsystem, save: Callable[[], object]) -> None:
        self._ctx = ctx
        self._subsystem = subsystem
        self._save = save
        """Keeps what outlives the driver, counters among it."""
        self.next_ns = 0
        """Before that, there is nothing to be done if :attr:`armed`."""
        self.armed = self._wanted = False
        self._controls = 0
        self._outcome = "ok"

    def due(self) -> None:
        """Commands have come: publishes, now or in a while."""
        now_ns = self._ctx.now_ns
        if now_ns >= self.next_ns:
            self.publish()
        elif not self.armed:
            self.armed = True
            self._ctx.call_at_ns(self.next_ns, self._late, daemon=True)

    def _late(self, _: object) -> None:
        self.armed = False
        self.publish()

    def publish(self) -> None:
        """Writes all figures."""
        ctx, subsystem = self._ctx, self._subsystem
        now_ns = ctx.now_ns
        self.next_ns = now_ns + INTERVAL_NS
        ctx.set_attribute("smart", _lines(subsystem.medium.smart(now_ns)._asdict()))
        ctx.set_attribute("medium", _lines(subsystem.medium.figures()))
        ctx.set_attribute("commands", _lines(self._commands()))
        ctx.set_attribute(
            "latency", _lines({f"below_{top}_ns": n for top, n in subsystem.counters.histogram().items()})
        )
        ctx.set_attribute("controllers", "\n".join(
            f"{each.cntlid} {each.host or 'kernel'} namespaces={','.join(map(str, each.active)) or 'none'}"
            for each in subsystem.controllers.values()
        ).encode()[:4000].decode(errors="ignore"))  # fmt: skip
        ctx.set_attribute("extra_latency_ns", subsystem.extra_latency_ns, writable=True)
        ctx.set_attribute("control", "\n".join(subsystem.medium.controls())[:4000], writable=True)
        ctx.set_attribute("control_status", f"{self._controls} {self._outcome}")
        for name in ("power_loss", "refresh", "smart_set"):
            ctx.set_attribute(name, "", writable=True)
        subsystem.check_health(now_ns)
        self._save()

    def _commands(self) -> dict[str, int]:
        counters = self._subsystem.counters
        smart = self._subsystem.medium.smart(self._ctx.now_ns)
        found = {"medium_reads": smart.host_reads, "medium_writes": smart.host_writes}
        admin = {int(word): word.name.lower() for word in Admin} | {
            int(word): f"vendor_{word.name.lower()}" for word in Vendor
        }
        io = {int(word): word.name.lower() for word in Io}
        for kind, book, known in (("admin", counters.admin, admin), ("io", counters.io, io)):
            for opcode, count in sorted(book.items()):
                found[f"{kind}_{known.get(opcode, f'{opcode:02x}h')}"] = count
        return found

    def store(self, name: str, value: bytes) -> None:
        """A written attribute; a mistake is a line in the log."""
        text = value.decode(errors="replace").strip()
        outcome = "ok"
        try:
            match name:
                case "power_loss":
                    self._subsystem.power_loss(self._ctx.now_ns)
                case "extra_latency_ns":
                    self._subsystem.set_latency(_number(name, text))
                case "control":
                    self._subsystem.medium.control(text)
                case "smart_set":
                    field, _, word = text.partition("=")
                    self._subsystem.medium.override_smart(field.strip(), _number(field, word) if word else None)
        except uxk.UxkError as exc:
            outcome = f"error: {exc.args[0]}"[:1000]
            self._ctx.log(str(exc), level=4)
        if name == "control":
            self._controls += 1
            self._outcome = outcome
        if not self._wanted:  # once, at the end of this turn, however much was written
            self._wanted = True
            self._ctx.call_later_ns(0, self._written)

    def _written(self, _: object) -> None:
        self._wanted = False
        self.publish()


def _number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise uxk.UsageError(f"{name}={text[:80]!r}: expected a number")
    return int(text)


def _lines(figures: dict[str, int]) -> str:
    return "\n".join(f"{name} {value}" for name, value in figures.items())[:4000]
