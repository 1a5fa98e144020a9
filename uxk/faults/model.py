"""What a fault is: data, checked before anything runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from uxk.core.lifecycle import ModuleState
from uxk.core.suggest import did_you_mean
from uxk.faults.sides import SIDES, Where, known_messages
from uxk.limits import I64_MAX, NAME_MAX_BYTES, PPM, SHOW_MAX_BYTES

FaultKind: TypeAlias = Literal[
    "crash", "hang", "slow", "drop", "delay", "reorder", "duplicate", "corrupt", "stale", "lie", "leak", "flood",
    "device",
]  # fmt: skip
Ns: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX, extra={"unit": "ns"})]
"""Nanoseconds; a file may say ``"10ms"``."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX)]
Probability: TypeAlias = Annotated[int, Meta(ge=1, le=PPM)]
Label: TypeAlias = Annotated[str, Meta(max_length=NAME_MAX_BYTES, pattern=r"^[A-Za-z0-9_-]*$")]
AttributeName: TypeAlias = Annotated[str, Meta(max_length=NAME_MAX_BYTES, pattern=r"^[A-Za-z0-9_]+$")]
ModuleName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES)]
Factor: TypeAlias = Annotated[int, Meta(ge=2, le=1000)]
Entries: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
LeakBytes: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 40, extra={"unit": "bytes"})]
Trigger: TypeAlias = Annotated[str, Meta(max_length=256, pattern=r"^\S*$")]

FAULTS_MAX: Final = 256
"""Faults in one plan: every message of a module passes all of its faults."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong between the kernel and one instance, or inside the device that it drives.

    The instance as a whole: ``crash`` ends it as an exception would; ``hang`` makes it deaf and mute for
    ``duration_ns`` (0: until the watchdog kills it), as SIGSTOP does; ``leak`` has it allocate ``size_bytes`` and
    forget them; ``flood`` has it send ``entries`` messages that nobody asked for.

    Single messages, at the side that ``where`` names: ``drop`` loses one, ``delay`` holds it for ``delay_ns``, ``slow``
    makes it come ``factor`` times as late, ``reorder`` lets the next one overtake it, ``duplicate`` sends it twice,
    ``corrupt`` flips one bit of it, ``stale`` brings an older one back, ``lie`` makes it plausible and wrong.

    A fault strikes at a time, or at messages.  Without ``probability_ppm``, ``after`` and ``message``, one of the
    instance as a whole strikes at ``at_ns``, ``count`` times, ``every_ns`` apart.  Otherwise it strikes matching
    messages from ``at_ns`` until ``until_ns``: after ``after`` of them, ``count`` times at most, each with
    ``probability_ppm``.  Chance comes from the run's stream ``fault/NAME``, or ``fault/INDEX`` without a name.

    ``device`` tells the instance at ``at_ns`` to misbehave by itself, as hardware does: ``rule`` is written to an
    attribute that it publishes, and at ``until_ns`` what takes it back.
    """

    kind: FaultKind
    module: ModuleName
    """The instance."""
    name: Label = ""
    """For results and options; the default is the kind and the fault's index, as in ``crash-0``."""
    at_ns: Ns = 0
    """Virtual time since the run's start, or since what ``when`` waits for."""
    when: Trigger = ""
    """What its time counts from: ``log:PATTERN``, ``event:KIND[:INSTANCE]``, ``state:STATE[:INSTANCE]``."""
    probability_ppm: Probability | None = None
    after: Count = 0
    """So many matching messages pass before it strikes any."""
    count: Count | None = None
    """How often at most; 0: no limit.  Default: no limit with a probability, and for ``slow``; else once."""
    every_ns: Ns = 0
    where: Where | None = None
    """Which messages: ``requests`` and ``events`` to the instance, ``completions`` and ``commands`` from it,
    ``answers`` to its commands.  Default: ``requests`` for a crash, hang or leak, ``commands`` for a flood, else
    ``completions``."""
    message: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""
    """Of these, only: an operation (``read``) for requests and completions, a topic for events, a kind (``hint``,
    ``submit``) for commands and their answers."""
    delay_ns: Ns = 0
    """For ``slow``: the time that a message is taken to have needed at least.  ``reorder`` waits so long for another
    message, 1 ms if this is 0."""
    duration_ns: Ns = 0
    factor: Factor = 2
    part: Literal["payload", "frame"] = "payload"
    """What ``corrupt`` may hit: data only, which nobody notices by itself, or any bit of the encoded message.  What
    ``stale`` brings back: old data in a new message, or the whole old message, before the new one."""
    size_bytes: LeakBytes = 64 << 10
    entries: Entries = 64
    rule: Annotated[str, Meta(max_length=SHOW_MAX_BYTES)] = ""
    """What the device does, in the language of its module: a rule of attribute ``faults``, or another's value."""
    undo: Annotated[str, Meta(max_length=SHOW_MAX_BYTES)] = ""
    """What is written to an attribute other than ``faults`` at ``until_ns``."""
    until_ns: Ns = 0
    """When it ends, counted as ``at_ns``; 0: never.  A rule of attribute ``faults`` is taken back then."""
    attribute: AttributeName = "faults"
    """Which writable attribute of the instance hears it."""

    @property
    def timed(self) -> bool:
        """Whether it strikes at a time, not at a message."""
        if self.kind == "device":
            return True
        return self.kind in WHOLE and self.probability_ppm is None and not self.after and not self.message

    @property
    def limit(self) -> int:
        """How often it may strike; 0: no limit."""
        if self.count is not None:
            return self.count
        return 1 if self.probability_ppm is None and self.kind != "slow" else 0

    @property
    def side(self) -> Where:
        """:attr:`where`, or its default."""
        return self.where or _USUAL_SIDE.get(self.kind, "completions")


WHOLE: Final = ("crash", "hang", "leak", "flood")
"""Kinds that befall the instance, not a message."""
MESSAGE_KINDS: Final = ("slow", "drop", "delay", "reorder", "duplicate", "corrupt", "stale", "lie")
"""Kinds that befall single messages."""
_USUAL_SIDE: Final[dict[str, Where]] = {
    "crash": "requests", "hang": "requests", "leak": "requests", "flood": "commands",
}  # fmt: skip
_KERNEL_SIDE: Final = (*WHOLE, *MESSAGE_KINDS)
_MEANT_FOR: Final = {
    "every_ns": WHOLE, "duration_ns": ("hang",), "delay_ns": ("delay", "slow", "reorder"), "part": ("corrupt", "stale"),
    "where": _KERNEL_SIDE, "message": _KERNEL_SIDE, "after": _KERNEL_SIDE, "rule": ("device",), "undo": ("device",),
    "attribute": ("device",), "count": _KERNEL_SIDE, "probability_ppm": _KERNEL_SIDE, "factor": ("slow",),
    "size_bytes": ("leak",), "entries": ("flood",),
}  # fmt: skip


def problem(fault: Fault) -> str:
    """What is wrong with a fault, in words, or ``""``."""
    for field in msgspec.structs.fields(Fault):
        kinds = _MEANT_FOR.get(field.name)
        if kinds and fault.kind not in kinds and getattr(fault, field.name) != field.default:
            return f"{field.name} has no meaning for a {fault.kind}; it is for: {', '.join(kinds)}"
    if wrong := _trigger_problem(fault.when) or _window_problem(fault):
        return wrong
    return _device_problem(fault) if fault.kind == "device" else _kernel_side_problem(fault)


def _kernel_side_problem(fault: Fault) -> str:
    if fault.kind == "delay" and not fault.delay_ns:
        return "a delay needs delay_ns"
    if fault.timed and fault.limit != 1 and not fault.every_ns:
        return f"count={fault.limit} without probability_ppm needs every_ns"
    if fault.every_ns and not fault.timed:
        return "every_ns and probability_ppm, after or message exclude each other"
    if fault.kind == "flood" and fault.timed and fault.side not in ("commands", "completions"):
        return f"where={fault.where}: an instance can flood with commands or completions"
    if fault.timed and fault.where is not None and fault.kind != "flood":
        return f"where has no meaning for a {fault.kind} that strikes at a time"
    if fault.message and fault.message not in (known := known_messages(fault.side)) and fault.side != "events":
        return (
            f"message={fault.message!r}: no such message among {fault.side}{did_you_mean(fault.message, known)}; "
            f"known: {', '.join(known)}"
        )
    return ""


def _window_problem(fault: Fault) -> str:
    if not fault.until_ns:
        return ""
    if fault.kind == "device" and fault.attribute != "faults" and not fault.undo:
        return f"until_ns takes back rules of 'faults'; for attribute {fault.attribute!r} undo says what to write then"
    if fault.until_ns <= fault.at_ns:
        return f"until_ns={fault.until_ns} is not after at_ns={fault.at_ns}"
    return ""


def _trigger_problem(when: str) -> str:
    if not when:
        return ""
    what, _, rest = when.partition(":")
    if what not in TRIGGERS:
        return f"when={when!r}: expected {', '.join(TRIGGERS)} and a colon{did_you_mean(what, TRIGGERS)}"
    if not rest:
        return f"when={when!r}: expected {TRIGGERS[what]}"
    state = rest.partition(":")[0]
    if what == "state" and state not in STATES:
        return f"when={when!r}: no state {state!r}{did_you_mean(state, STATES)}; known: {', '.join(STATES)}"
    return ""


TRIGGERS: Final = {
    "log": "log:PATTERN, of a line of the log", "event": "event:KIND[:INSTANCE], of the event hash",
    "state": "state:STATE[:INSTANCE]",
}  # fmt: skip
"""What a fault can wait for, and how that is written."""
STATES: Final = tuple(state.initstate for state in ModuleState)
"""States of an instance by name."""


def _device_problem(fault: Fault) -> str:
    if not fault.rule.strip():
        return "a device fault needs a rule"
    for name, text in (("rule", fault.rule), ("undo", fault.undo)):
        if not text.isprintable():
            return f"{name}={text!r}: expected one line of printable characters"
    if fault.undo and fault.attribute == "faults":
        return "undo has no meaning for attribute 'faults', whose rules until_ns takes back"
    if fault.undo and not fault.until_ns:
        return "undo needs until_ns, the time at which it is written"
    return ""


assert set(SIDES) == set(get_args(Where))
