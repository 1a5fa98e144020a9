"""What every medium offers, and the state that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias

import uxk
from uxk.uapi.blk import Extent
from uxk_nvme.medium.params import MediumParams
from uxk_nvme.store import Store

Data: TypeAlias = bytes | bytearray | memoryview

NAND_UNIT_BYTES: Final = 4096
"""What the volatile cache keeps and the translation layer maps, unless a parameter says otherwise."""


class MediumSmart(NamedTuple):
    """What the medium contributes to the SMART log (NVMe Base 2.0, figure 207) and to telemetry."""

    temperature_k: int
    percentage_used: int
    """Of the rated program/erase cycles; may exceed 100."""
    available_spare: int
    """Per cent."""
    spare_threshold: int
    media_errors: int
    """Reads that could not be corrected, checksum failures among them."""
    unsafe_shutdowns: int
    critical_warning: int
    """Bit 0: spare below threshold, 1: temperature, 2: unreliable, 3: read-only."""
    host_read_bytes: int
    host_written_bytes: int
    host_reads: int
    host_writes: int
    nand_read_bytes: int
    nand_written_bytes: int
    busy_ns: int
    """Time in which commands were under way; the controller measures it (:attr:`Medium.busy`)."""
    warning_temp_ns: int
    critical_temp_ns: int
    thermal_transitions_1: int
    thermal_transitions_2: int
    thermal_time_1_ns: int
    thermal_time_2_ns: int
    throttle: int
    """0: none, 1: light, 2: heavy."""


_OF_NOW: Final = frozenset({
    "temperature_k", "percentage_used", "available_spare", "spare_threshold", "critical_warning", "throttle",
})  # fmt: skip
LIFETIME: Final = tuple(name for name in MediumSmart._fields if name not in _OF_NOW)
"""Counters that never begin anew, whatever becomes of the driver."""
_SMART_MAX: Final = {
    "temperature_k": 0xFFFF, "percentage_used": 0xFF, "available_spare": 100, "spare_threshold": 100,
    "critical_warning": 0x3F, "thermal_transitions_1": 0xFFFFFFFF, "thermal_transitions_2": 0xFFFFFFFF,
    "thermal_time_1_ns": 0xFFFFFFFF * 10**9, "thermal_time_2_ns": 0xFFFFFFFF * 10**9, "throttle": 2,
}  # fmt: skip
"""What the SMART log has room for."""
_COUNTER_MAX: Final = (1 << 63) - 1


class Medium(Protocol):
    """Flash with a store under it.  Byte addresses; lengths are multiples of the logical block, and within the store.

    Data effects happen at the call.  A result is the time in ns at which the command is complete, or, if negative,
    minus an NVMe status (status code type << 8 | status code).
    """

    store: Store
    next_event_ns: int | None
    """When :meth:`run_background` wants to be called next."""
    power_state: int
    """Feature 02h as it is now: a command in an idle state brings back the last operational one."""
    warning_k: int
    critical_k: int
    """WCTEMP and CCTEMP."""
    has_heat: bool
    """Whether :meth:`set_thermal` has an effect."""
    busy: Callable[[int], int]
    """Who measures the controller's busy time: nanoseconds until then."""

    def read(self, offset: int, into: memoryview, now_ns: int) -> int:
        """Fills ``into``."""
        ...

    def write(self, offset: int, data: Data, now_ns: int, fua: bool = False) -> int:
        """Stores ``data``; with ``fua`` complete only when durable."""
        ...

    def flush(self, now_ns: int) -> int:
        """Complete when everything that was acknowledged is durable."""
        ...

    def write_zeroes(self, offset: int, length: int, now_ns: int, deallocate: bool) -> int:
        """The range reads as zeros, at once durable."""
        ...

    def deallocate(self, offset: int, length: int, now_ns: int) -> int:
        """The range reads as zeros, and its flash pages are free; at once durable."""
        ...

    def write_uncorrectable(self, offset: int, length: int, now_ns: int) -> int:
        """Reads of the range fail until it is written."""
        ...

    def verify(self, offset: int, length: int, now_ns: int) -> int:
        """A read that gives no data."""
        ...

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What is allocated, from ``offset`` on; may cover less than asked."""
        ...

    def format(self, offset: int, length: int, now_ns: int) -> int:
        """Erases the range."""
        ...

    def power_loss(self, now_ns: int) -> None:
        """Drops what the volatile cache holds."""
        ...

    def set_write_cache(self, on: bool, now_ns: int) -> int:
        """Feature 06h; switched off, complete when everything that was cached is durable, and on if that fails."""
        ...

    def set_power_state(self, ps: int, now_ns: int) -> None:
        """Feature 02h."""
        ...

    def set_thermal(self, light_k: int, heavy_k: int, now_ns: int) -> None:
        """Feature 10h: temperatures from which on to throttle lightly and heavily; 0: as the device itself does."""
        ...

    def smart(self, now_ns: int) -> MediumSmart:
        """Health as of ``now_ns``."""
        ...

    def override_smart(self, field: str, value: int | None) -> None:
        """Makes a field of :meth:`smart` show ``value``; None: the truth again."""
        ...

    def lifetime(self, now_ns: int) -> dict[str, int]:
        """:data:`LIFETIME` fields of :meth:`smart` as they truly are, those of earlier incarnations included."""
        ...

    def resume(self, lifetime: Mapping[str, int]) -> None:
        """Counts on from there."""
        ...

    def control(self, text: str) -> None:
        """Changes the medium at run time: a die that is slow, heat; UsageError for what it does not know."""
        ...

    def controls(self) -> list[str]:
        """What :meth:`control` has changed, as its texts."""
        ...

    def figures(self) -> dict[str, int]:
        """Counters for sysfs."""
        ...

    def run_background(self, now_ns: int) -> None:
        """Does what was due; sets :attr:`next_event_ns` anew."""
        ...

    def close(self) -> None:
        """Gives the store back."""
        ...


class PowerState(NamedTuple):
    """One of Identify Controller's power states."""

    max_power_mw: int
    operational: bool
    slow_ppm: int
    """Flash times are so much of those of state 0."""
    entry_ns: int
    exit_ns: int


POWER_STATES: Final = (
    # Shape of client TLC drives' tables (three operational states, two idle ones with exit latencies of about 1 ms
    # and some 10 ms); the numbers are ours.
    PowerState(8_250, True, 1_000_000, 0, 0),
    PowerState(4_500, True, 1_500_000, 0, 0),
    PowerState(3_000, True, 2_500_000, 0, 0),
    PowerState(50, False, 1_000_000, 2_000_000, 1_200_000),
    PowerState(5, False, 1_000_000, 500_000, 9_000_000),
)


def _never_busy(now_ns: int) -> int:
    return 0


class Core:
    """Counters, overrides and store calls that the media share."""

    has_heat = False

    def __init__(self, params: MediumParams, store: Store) -> None:
        self.store = store
        self.next_event_ns: int | None = None
        self.warning_k, self.critical_k = params.warning_k, params.critical_k
        self.busy: Callable[[int], int] = _never_busy
        self.reads: int = 0
        self.writes: int = 0
        self.read_bytes: int = 0
        self.written_bytes: int = 0
        self.media_errors = 0
        self.unsafe_shutdowns = 0
        self.power_state = self._operational = 0
        self._idle_ns = 0
        """When the idle state has been entered."""
        self._ready_ns = 0
        """When the device has left it."""
        self._overrides: dict[str, int] = {}
        self._before: dict[str, int] = {}
        """Counters of earlier incarnations."""

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What is allocated, from ``offset`` on; may cover less than asked."""
        return self.store.extents(offset, length)

    def override_smart(self, field: str, value: int | None) -> None:
        """Makes a field of the health data show ``value``; None: the truth again.  UsageError for what cannot be."""
        if field not in MediumSmart._fields:
            known = ", ".join(MediumSmart._fields)
            raise uxk.UsageError(f"smart field {field!r}: expected one of {known}")
        if value is None:
            self._overrides.pop(field, None)
            return
        most = _SMART_MAX.get(field, _COUNTER_MAX)
        if not 0 <= value <= most:
            raise uxk.UsageError(f"smart field {field}={value}: expected 0 to {most}")
        self._overrides[field] = value

    def smart(self, now_ns: int) -> MediumSmart:
        """Health as of ``now_ns``."""
        truth, before = self._truth(now_ns), self._before
        if before:
            truth = truth._replace(**{name: getattr(truth, name) + count for name, count in before.items()})
        return truth._replace(**self._overrides) if self._overrides else truth

    def lifetime(self, now_ns: int) -> dict[str, int]:
        """:data:`LIFETIME` fields of :meth:`smart` as they truly are, those of earlier incarnations included."""
        truth, before = self._truth(now_ns), self._before
        return {name: getattr(truth, name) + before.get(name, 0) for name in LIFETIME}

    def resume(self, lifetime: Mapping[str, int]) -> None:
        """Counts on from there."""
        self._before = {name: lifetime[name] for name in LIFETIME if name in lifetime}

    def control(self, text: str) -> None:
        """Nothing can be changed at run time but flash."""
        raise uxk.UsageError(
            f"{text[:80]!r}: expected, with medium=ftl, 'slow_die DIE PPM', 'slow_channel CHANNEL PPM' (PPM from 10^6 "
            "to 10^9) or 'throttle 0|1|2|off'"
        )

    def controls(self) -> list[str]:
        """Nothing was changed."""
        return []

    def set_thermal(self, light_k: int, heavy_k: int, now_ns: int) -> None:
        """Nothing here gets hot."""

    def set_power_state(self, ps: int, now_ns: int) -> None:
        """One of :data:`POWER_STATES`; in a state that is not operational the next command pays the exit latency."""
        if not 0 <= ps < len(POWER_STATES):
            raise uxk.UsageError(f"power state {ps}: expected 0 to {len(POWER_STATES) - 1}")
        state = POWER_STATES[ps]
        if state.operational:
            self._wake(now_ns)
            self._operational = ps
        elif ps != self.power_state:
            self._idle_ns = max(now_ns, self._ready_ns, self._idle_ns) + state.entry_ns
        self.power_state = ps

    def _wake(self, now_ns: int) -> int:
        """When a command that comes now may begin; an idle device returns to the last operational state for it."""
        state = POWER_STATES[self.power_state]
        if not state.operational:
            self._ready_ns = max(now_ns, self._idle_ns) + state.exit_ns
            self.power_state = self._operational
        return max(now_ns, self._ready_ns)

    def run_background(self, now_ns: int) -> None:
        """Nothing to do."""
        self.next_event_ns = None

    def close(self) -> None:
        """Gives the store back."""
        self.store.close()

    def _failed_read(self, status: int) -> int:
        self.media_errors += 1
        return -status

    def _truth(self, now_ns: int) -> MediumSmart:
        """The health data of this incarnation: of a medium that neither wears nor heats up."""
        zeros = dict.fromkeys(MediumSmart._fields, 0)
        known = {
            "temperature_k": AMBIENT_K, "available_spare": 100, "spare_threshold": SPARE_THRESHOLD_PERCENT,
            "media_errors": self.media_errors, "unsafe_shutdowns": self.unsafe_shutdowns,
            "host_read_bytes": self.read_bytes, "host_written_bytes": self.written_bytes,
            "host_reads": self.reads, "host_writes": self.writes, "nand_read_bytes": self.read_bytes,
            "nand_written_bytes": self.written_bytes, "busy_ns": self.busy(now_ns),
        }  # fmt: skip
        return MediumSmart(**{**zeros, **known})


AMBIENT_K: Final = 298
"""25 degrees Celsius."""
SPARE_THRESHOLD_PERCENT: Final = 10
"""Usual in drives' SMART logs."""
