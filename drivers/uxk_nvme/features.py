"""Get and Set Features: current, default and saved values, and what may be done (base, sections 5.15, 5.27)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from uxk_nvme.command import Command
from uxk_nvme.events import SUPPORTED
from uxk_nvme.medium import POWER_STATES
from uxk_nvme.spec import BROADCAST, Feature, Refused, Status, invalid_field

if TYPE_CHECKING:
    from uxk_nvme.controller import Controller

THERMAL_MIN_K: Final = 273
THERMAL_MAX_K: Final = 358


class Trait(NamedTuple):
    """What a feature is like."""

    default: int = 0
    saveable: bool = False
    namespace: bool = False
    """Whether it is a namespace's, and all of its controllers see it."""
    data_bytes: int = 0

    @property
    def capabilities(self) -> int:
        """The answer to SEL 3: saveable, of a namespace, changeable."""
        return self.saveable | self.namespace << 1 | 1 << 2


TRAITS: Final[dict[int, Trait]] = {
    Feature.ARBITRATION: Trait(default=0x07, saveable=True),
    Feature.POWER: Trait(saveable=True),
    Feature.TEMPERATURE: Trait(saveable=True),
    Feature.ERROR_RECOVERY: Trait(namespace=True),
    Feature.WRITE_CACHE: Trait(default=1, saveable=True),
    Feature.QUEUES: Trait(),
    Feature.COALESCING: Trait(),
    Feature.VECTOR: Trait(),
    Feature.ATOMICITY: Trait(),
    Feature.EVENTS: Trait(),
    Feature.TIMESTAMP: Trait(data_bytes=8),
    Feature.KEEP_ALIVE: Trait(),
    Feature.THERMAL: Trait(saveable=True),
    Feature.HOST_BEHAVIOUR: Trait(data_bytes=512),
    Feature.SOFTWARE_PROGRESS: Trait(saveable=True),
    Feature.HOST_ID: Trait(data_bytes=16),
    Feature.WRITE_PROTECT: Trait(namespace=True),
}

AGGREGATION_UNIT_NS: Final = 100_000
"""Feature 08h counts in it."""
KATO_MAX_MS: Final = 0xFFFFFFFF


class Features:
    """Values of one controller.  Power state, write cache and heat are the device's, others a namespace's."""

    __slots__ = ("_controller", "delays", "host_id", "saved", "timestamp_ns", "values")

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.saved: dict[int, int] = {}
        """By feature, or threshold selector << 8 | feature."""
        self.values: dict[int, int] = {}
        self.host_id = bytes(16)
        self.delays = False
        """ACRE: the host understands Command Retry Delay (feature 16h)."""
        self.timestamp_ns: tuple[int, int] = (0, 0)
        """What the host set, in milliseconds, and when."""

    # --- Get ---

    def get(self, cmd: Command) -> None:
        """Answers Get Features.  Refused: Invalid Field."""
        feature, select = cmd.dw[10] & 0xFF, cmd.dw[10] >> 8 & 7
        trait = self._trait(feature)
        if select > 3:
            raise invalid_field(10, 8)
        if select == 3:
            cmd.dw0 = trait.capabilities
            return
        if trait.data_bytes:
            cmd.dw0 = 0
            cmd.answer(self._data(cmd, feature, select))
            return
        if trait.namespace:
            namespace = cmd.namespace()
            current = namespace.protect if feature == Feature.WRITE_PROTECT else namespace.recovery
            cmd.dw0 = current if not select else trait.default
            return
        if feature == Feature.TEMPERATURE and cmd.dw[11] >> 16 & 0xF == _ALL_SENSORS:
            raise invalid_field(11, 16)
        key = self._keys(cmd, feature)[0]
        cmd.dw0 = self._default(key, trait) if select == 1 else self._value(key, trait, saved=select == 2)

    def coalescing(self, vector: int) -> tuple[int, int] | None:
        """Nanoseconds that completions may wait, and how many do; None if this controller's host has not said."""
        word = self.values.get(Feature.COALESCING, 0)
        if not word >> 8 & 0xFF:
            return None
        if self.values.get(Feature.VECTOR | vector << 8, 0) >> 16 & 1:  # CD: not for this one
            return 1, 1
        return (word >> 8 & 0xFF) * AGGREGATION_UNIT_NS, (word & 0xFF) + 1

    def value(self, feature: int, selector: int = 0) -> int:
        """The current value of a feature."""
        return self._value(selector << 8 | feature, TRAITS[feature], saved=False)

    def _value(self, key: int, trait: Trait, *, saved: bool) -> int:
        values, subsystem = self.saved if saved else self.values, self._controller.subsystem
        if not saved:
            match key:
                case Feature.WRITE_CACHE:
                    return int(subsystem.write_cache_on)
                case Feature.POWER:
                    return values.get(key, 0) & ~0x1F | subsystem.medium.power_state
                case Feature.THERMAL:
                    return subsystem.thermal
        return values.get(key, self._default(key, trait))

    def _default(self, key: int, trait: Trait) -> int:
        if key == Feature.QUEUES:
            queues = self._controller.queue_limit - 1
            return queues | queues << 16
        if key & 0xFF == Feature.TEMPERATURE:  # under temperature: never
            return 0 if key >> 8 & _UNDER else self._controller.subsystem.medium.warning_k
        return trait.default

    def _keys(self, cmd: Command, feature: int) -> tuple[int, ...]:
        """Temperature thresholds are one for each sensor and direction."""
        if feature == Feature.TEMPERATURE:
            return tuple(selector << 8 | feature for selector in _thresholds(cmd.dw[11]))
        if feature == Feature.VECTOR:
            return (feature | (cmd.dw[11] & 0xFFFF) << 8,)
        return (feature,)

    def _data(self, cmd: Command, feature: int, select: int) -> bytes:
        if feature == Feature.HOST_ID:
            return self.host_id[: 16 if cmd.dw[11] & 1 else 8]
        if feature == Feature.HOST_BEHAVIOUR:
            return bytes((self.delays and not select,)).ljust(512, b"\0")
        set_ms, since_ns = self.timestamp_ns
        if select:
            return bytes(8)
        now_ms = set_ms + (cmd.now_ns - since_ns) // 1_000_000
        return (now_ms & 0xFFFFFFFFFFFF).to_bytes(6, "little") + bytes((bool(set_ms) << 1, 0))

    # --- Set ---

    def set(self, cmd: Command) -> int:
        """Acts on Set Features; when it is done.

        Refused: Invalid Field, Feature Identifier Not Saveable, Feature Not Namespace Specific, ...
        """
        feature, save = cmd.dw[10] & 0xFF, bool(cmd.dw[10] >> 31)
        trait = self._trait(feature)
        if save and not trait.saveable:
            raise Refused(Status.FEATURE_NOT_SAVEABLE, byte=43, bit=7)
        if not trait.namespace and cmd.nsid not in (0, BROADCAST):
            cmd.check_nsid()
            raise Refused(Status.FEATURE_NOT_NAMESPACE, byte=4)
        setter, due_ns = _SETTERS.get(feature), cmd.now_ns
        value = cmd.dw[11] if setter is None else setter(self, cmd)
        if feature == Feature.WRITE_CACHE:
            due_ns = self._controller.subsystem.set_write_cache(bool(value), cmd.now_ns)
        if not trait.data_bytes and not trait.namespace:
            for key in self._keys(cmd, feature):
                self.values[key] = value
                if save:
                    self.saved[key] = value
        self._controller.subsystem.keep()
        return due_ns

    def _trait(self, feature: int) -> Trait:
        trait, subsystem = TRAITS.get(feature), self._controller.subsystem
        missing = trait is None
        match feature:
            case Feature.WRITE_CACHE:
                missing = not subsystem.has_write_cache
            case Feature.THERMAL:
                missing = not subsystem.medium.has_heat
        if trait is None or missing:
            raise invalid_field(10)
        return trait


_ALL_SENSORS: Final = 0xF
_UNDER: Final = 0x10


def _thresholds(dword: int) -> list[int]:
    """Sensors, 0 being the composite temperature, each with the direction; checked."""
    sensor, under = dword >> 16 & 0xF, dword >> 20 & 3
    if sensor not in (0, 1, _ALL_SENSORS) or under > 1:
        raise invalid_field(11, 16)
    return [each | under << 4 for each in ((0, 1) if sensor == _ALL_SENSORS else (sensor,))]


def _set_temperature(features: Features, cmd: Command) -> int:
    _thresholds(cmd.dw[11])
    return cmd.dw[11] & 0xFFFF


def _set_power(features: Features, cmd: Command) -> int:
    if cmd.dw[11] & 0x1F >= len(POWER_STATES):
        raise invalid_field(11)
    features._controller.subsystem.set_power_state(cmd.dw[11] & 0x1F, cmd.now_ns)
    return cmd.dw[11] & 0xFF


def _set_recovery(features: Features, cmd: Command) -> int:
    if cmd.dw[11] >> 16 & 1:  # DULBE: namespaces say that they do not have it
        raise invalid_field(11, 16)
    value = cmd.dw[11] & 0xFFFF
    targets = features._controller.active.values() if cmd.broadcast else (cmd.namespace(),)
    for namespace in targets:
        namespace.recovery = value
    return value


def _set_cache(features: Features, cmd: Command) -> int:
    return cmd.dw[11] & 1


def _set_queues(features: Features, cmd: Command) -> int:
    wanted = cmd.dw[11] & 0xFFFF, cmd.dw[11] >> 16
    if 0xFFFF in wanted:
        raise invalid_field(11)
    if features._controller.has_io_queues:
        raise Refused(Status.SEQUENCE_ERROR)
    limit = features._controller.queue_limit - 1
    granted = min(wanted[0], limit) | min(wanted[1], limit) << 16
    cmd.dw0 = granted
    return granted


def _set_vector(features: Features, cmd: Command) -> int:
    if cmd.dw[11] & 0xFFFF > features._controller.subsystem.queue_limit:
        raise invalid_field(11)
    return cmd.dw[11] & 0x1FFFF


def _set_events(features: Features, cmd: Command) -> int:
    features._controller.events.enabled = cmd.dw[11] & SUPPORTED
    return cmd.dw[11] & SUPPORTED


def _set_timestamp(features: Features, cmd: Command) -> int:
    raw = bytes(cmd.data(8, to_host=False))
    features.timestamp_ns = int.from_bytes(raw[:6], "little"), cmd.now_ns
    return 0


def _set_thermal(features: Features, cmd: Command) -> int:
    heavy, light = cmd.dw[11] & 0xFFFF, cmd.dw[11] >> 16
    if any(value and not THERMAL_MIN_K <= value <= THERMAL_MAX_K for value in (light, heavy)):
        raise invalid_field(11)
    if light and heavy and light >= heavy:
        raise invalid_field(11)
    features._controller.subsystem.set_thermal(cmd.dw[11], cmd.now_ns)
    return cmd.dw[11]


def _set_host_id(features: Features, cmd: Command) -> int:
    if features._controller.fabrics:  # it came with Connect
        raise Refused(Status.SEQUENCE_ERROR)
    length = 16 if cmd.dw[11] & 1 else 8
    features.host_id = bytes(cmd.data(length, to_host=False)).ljust(16, b"\0")
    return 0


def _set_behaviour(features: Features, cmd: Command) -> int:
    acre = cmd.data(512, to_host=False)[0]
    if acre > 1:
        raise invalid_field(11)
    features.delays = bool(acre)
    return 0


def _set_protect(features: Features, cmd: Command) -> int:
    namespace = cmd.namespace()
    state = cmd.dw[11] & 7
    if state > 1:  # until power cycle, and permanent: NWPC says that there is neither
        raise invalid_field(11)
    namespace.protect = state
    namespace.refresh()
    features._controller.subsystem.namespace_changed(namespace)
    return state


_SETTERS: Final[dict[int, Callable[[Features, Command], int]]] = {
    Feature.POWER: _set_power,
    Feature.TEMPERATURE: _set_temperature,
    Feature.ERROR_RECOVERY: _set_recovery,
    Feature.WRITE_CACHE: _set_cache,
    Feature.QUEUES: _set_queues,
    Feature.VECTOR: _set_vector,
    Feature.EVENTS: _set_events,
    Feature.TIMESTAMP: _set_timestamp,
    Feature.THERMAL: _set_thermal,
    Feature.HOST_ID: _set_host_id,
    Feature.HOST_BEHAVIOUR: _set_behaviour,
    Feature.WRITE_PROTECT: _set_protect,
}
