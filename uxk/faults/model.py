"""What a fault is: data, checked before anything runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from uxk.limits import I64_MAX, NAME_MAX_BYTES, PPM, SHOW_MAX_BYTES

FaultKind: TypeAlias = Literal["crash", "hang", "drop", "delay", "corrupt", "duplicate", "device"]
Where: TypeAlias = Literal["requests", "completions"]
Ns: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX, extra={"unit": "ns"})]
"""Nanoseconds; a file may say ``"10ms"``."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX)]
Probability: TypeAlias = Annotated[int, Meta(ge=1, le=PPM)]
Label: TypeAlias = Annotated[str, Meta(max_length=NAME_MAX_BYTES, pattern=r"^[A-Za-z0-9_-]*$")]
AttributeName: TypeAlias = Annotated[str, Meta(max_length=NAME_MAX_BYTES, pattern=r"^[A-Za-z0-9_]+$")]
ModuleName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES)]

FAULTS_MAX: Final = 256
"""Faults in one plan: every message of a module passes all of its faults."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong between the kernel and one instance, or inside the device that it drives.

    ``crash``: the instance dies as by an exception.  ``hang``: it neither hears nor says anything for
    ``duration_ns`` (0: until the watchdog kills it), as under SIGSTOP.  The others act on single messages:
    ``drop`` loses one, ``delay`` holds it for ``delay_ns``, ``corrupt`` flips one bit of it, ``duplicate``
    sends it twice.

    Without a probability a crash or hang strikes at ``at_ns``, ``count`` times, ``every_ns`` apart, and a
    message fault strikes the first ``count`` messages from ``at_ns`` on.  With ``probability_ppm`` every message
    from ``at_ns`` on is struck with that probability, ``count`` times at most.  Chance comes from the run's
    stream ``fault/INDEX``.

    ``device`` tells the instance at ``at_ns`` to misbehave by itself, as hardware does: ``rule`` is written to an
    attribute that it publishes.
    """

    kind: FaultKind
    module: ModuleName
    """The instance."""
    name: Label = ""
    """For results and options; the default is the kind and the fault's index, as in ``crash-0``."""
    at_ns: Ns = 0
    """Virtual time since the run's start."""
    probability_ppm: Probability | None = None
    count: Count | None = None
    """How often at most; 0: no limit.  Default: no limit with a probability, else once."""
    every_ns: Ns = 0
    where: Where = "completions"
    """Which messages: those to the instance (``requests``) or from it."""
    delay_ns: Ns = 0
    duration_ns: Ns = 0
    part: Literal["payload", "frame"] = "payload"
    """What ``corrupt`` may hit: data only, which nobody notices by itself, or any bit of the encoded message."""
    rule: Annotated[str, Meta(max_length=SHOW_MAX_BYTES)] = ""
    """What the device does, in the language of its module: a rule of attribute ``faults``, or another's value."""
    until_ns: Ns = 0
    """When a rule of attribute ``faults`` is taken back; 0: never."""
    attribute: AttributeName = "faults"
    """Which writable attribute of the instance hears it."""

    @property
    def timed(self) -> bool:
        """Whether it strikes at a time, not at a message."""
        return self.kind in ("crash", "hang", "device") and self.probability_ppm is None

    @property
    def limit(self) -> int:
        """How often it may strike; 0: no limit."""
        if self.count is not None:
            return self.count
        return 1 if self.probability_ppm is None else 0


_KERNEL_SIDE: Final = ("crash", "hang", "drop", "delay", "corrupt", "duplicate")
_MEANT_FOR: Final = {
    "every_ns": ("crash", "hang"), "duration_ns": ("hang",), "delay_ns": ("delay",), "part": ("corrupt",),
    "where": ("drop", "delay", "corrupt", "duplicate"), "rule": ("device",), "until_ns": ("device",),
    "attribute": ("device",), "count": _KERNEL_SIDE, "probability_ppm": _KERNEL_SIDE,
}  # fmt: skip


def problem(fault: Fault) -> str:
    """What is wrong with a fault, in words, or ``""``."""
    for field in msgspec.structs.fields(Fault):
        kinds = _MEANT_FOR.get(field.name)
        if kinds and fault.kind not in kinds and getattr(fault, field.name) != field.default:
            return f"{field.name} has no meaning for a {fault.kind}; it is for: {', '.join(kinds)}"
    if fault.kind == "device":
        return _device_problem(fault)
    if fault.kind == "delay" and not fault.delay_ns:
        return "a delay needs delay_ns"
    if fault.timed and fault.limit != 1 and not fault.every_ns:
        return f"count={fault.limit} without probability_ppm needs every_ns"
    if fault.every_ns and not fault.timed:
        return "every_ns and probability_ppm exclude each other"
    return ""


def _device_problem(fault: Fault) -> str:
    if not fault.rule.strip():
        return "a device fault needs a rule"
    if not fault.rule.isprintable():
        return f"rule={fault.rule!r}: expected one line of printable characters"
    if fault.until_ns and fault.attribute != "faults":
        return f"until_ns has no meaning for attribute {fault.attribute!r}, it takes back rules of 'faults'"
    if fault.until_ns and fault.until_ns <= fault.at_ns:
        return f"until_ns={fault.until_ns} is not after at_ns={fault.at_ns}"
    return ""
