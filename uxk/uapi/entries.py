"""Submission and completion entries: the only things that cross the boundary.

Two queue pairs per instance.  *Down*: the kernel submits (:data:`Down`), the extension
completes (:data:`DownReply`).  *Up*: the extension submits (:data:`Up`), the kernel completes
(:class:`Completion`).  Entries are msgspec arrays with an integer tag first and, where an answer is due, the
command id second, so that the id of a damaged entry can often still be read.

Status fields hold 0 or a positive errno.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from uxk.limits import (
    I64_MAX,
    KMSG_FIELDS_MAX,
    KMSG_TEXT_MAX_BYTES,
    NAME_MAX_BYTES,
    PATH_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    SHOW_MAX_BYTES,
    TASKS_MAX,
    U32_MAX,
)

U31: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
U32: TypeAlias = Annotated[int, Meta(ge=0, le=U32_MAX)]
U63: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX)]
I64: TypeAlias = Annotated[int, Meta(ge=-I64_MAX, le=I64_MAX)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES)]
Path: TypeAlias = Annotated[str, Meta(min_length=1, max_length=PATH_MAX_BYTES)]
Text: TypeAlias = Annotated[str, Meta(max_length=KMSG_TEXT_MAX_BYTES)]
Value: TypeAlias = Annotated[str, Meta(max_length=SHOW_MAX_BYTES)]
Tasks: TypeAlias = Annotated[tuple[U31, ...], Meta(max_length=TASKS_MAX)]
"""A task by its number, then its ancestors; empty for the extension as a whole (see :func:`uxk.core.waitfor.stops`)."""
Payload: TypeAlias = Annotated[bytes, Meta(max_length=PAYLOAD_MAX_BYTES)]
Fields: TypeAlias = Annotated[dict[Name, int | Value], Meta(max_length=KMSG_FIELDS_MAX)]
Properties: TypeAlias = Annotated[dict[Name, Value], Meta(max_length=KMSG_FIELDS_MAX)]


class Op(IntEnum):
    """Generic opcodes; a driver class defines its own from ``Op.PRIVATE`` up."""

    NOP = 0
    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    WRITE_ZEROES = 5
    CALL = 6
    EXTENTS = 7
    OPEN = 16
    RELEASE = 17
    IOCTL = 18
    PRIVATE = 128


class Entry(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """Base of every entry."""


# --- down: kernel to extension ----------------------------------------------------------------------


class Request(Entry, tag=1):
    """One request for the extension.  What it holds was checked when it entered the kernel."""

    cid: int
    opcode: int = 0
    payload: bytes = b""
    offset: int = 0
    length: int = 0
    region: int = 0
    """Capability of an arena range for bulk data, or 0."""
    port: int = 0
    """Which extension or open file it comes from; 0 for the kernel's own clients."""
    device: int = 0
    """Which of the instance's devices: 0 is its own, others have the number that adding them gave."""
    buffer: int = 0
    """Where in ``region`` the data begin, in bytes."""
    flags: int = 0
    """Bits of :class:`uxk.uapi.blk.IoFlag`, or of the driver class."""


class Event(Entry, tag=2):
    """News without an answer: ``topic`` says of what, ``name`` of whom."""

    topic: str
    name: str = ""
    value: bytes = b""
    cap: int = 0


class Ping(Entry, tag=3):
    """Heartbeat: answer with a :class:`Pong` of the same number."""

    number: int


class Stop(Entry, tag=4):
    """The instance is going; nothing follows."""

    reason: Text = ""


Down: TypeAlias = Request | Event | Ping | Stop


class Completion(Entry, tag=16):
    """Answer to the command ``cid``, in both directions."""

    cid: U63
    status: U31 = 0
    result: I64 = 0
    payload: Payload = b""


class Pong(Entry, tag=17):
    """Answer to a :class:`Ping`."""

    number: U63


DownReply: TypeAlias = Completion | Pong


# --- up: extension to kernel ------------------------------------------------------------------------


class Submit(Entry, tag=32):
    """I/O on a device that the capability ``cap`` names.

    ``wait`` says who does nothing else until the answer comes (for the wait-for graph): nobody, the extension, or one
    of its tasks.
    """

    cid: U63
    cap: U63
    opcode: U31 = 0
    payload: Payload = b""
    offset: U63 = 0
    length: U32 = 0
    region: U63 = 0
    wait: bool | Tasks = False
    buffer: U63 = 0
    flags: U32 = 0


class Ready(Entry, tag=33):
    """The readiness signal of a module with ``ready="explicit"``."""


class Log(Entry, tag=34):
    """A kmsg line."""

    level: Annotated[int, Meta(ge=0, le=7)]
    text: Text
    fields: Fields = {}


class Open(Entry, tag=35):
    """Asks for a capability on ``kind`` (device, lock, snapshot, kmsg, sysctl, ...) named ``target``."""

    cid: U63
    kind: Name
    target: Value
    rights: U31


class Derive(Entry, tag=36):
    """Hands a part of a capability to another instance."""

    cid: U63
    cap: U63
    to: Name
    rights: U31
    start: U63 = 0
    length: U63 | None = None


class Revoke(Entry, tag=37):
    """Withdraws a capability and everything derived from it."""

    cid: U63
    cap: U63


class Allocate(Entry, tag=38):
    """Arena memory; the answer's ``result`` is the capability.

    With a name in ``keep``, the memory outlives a crash: the next incarnation that asks for the same name gets
    the same bytes (a driver's medium), until the module is removed.
    """

    cid: U63
    length: U63
    keep: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""


class Free(Entry, tag=39):
    """Gives arena memory back."""

    cid: U63
    cap: U63


class Acquire(Entry, tag=40):
    """Takes a lock for at most ``lease_ns``; answered when it is granted, ``result`` is the token."""

    cid: U63
    cap: U63
    exclusive: bool = True
    lease_ns: U63 = 0
    tasks: Tasks = ()
    """Which task takes it."""


class Release(Entry, tag=41):
    """Gives a lock back.  A token whose lease has run out is answered with ESTALE."""

    cid: U63
    cap: U63
    token: U63


class Publish(Entry, tag=42):
    """New version of a snapshot; ``expected`` is the version it replaces, or 0 for any."""

    cid: U63
    cap: U63
    data: Payload
    expected: U63 = 0


class Pin(Entry, tag=43):
    """Reads the current version of a snapshot and keeps it alive until :class:`Unpin`."""

    cid: U63
    cap: U63


class Unpin(Entry, tag=44):
    """Lets go of a version."""

    cid: U63
    cap: U63
    version: U63


class TreeRead(Entry, tag=45):
    """Reads an attribute of sysfs or /proc/sys."""

    cid: U63
    path: Path


class TreeWrite(Entry, tag=46):
    """Writes an attribute of sysfs or /proc/sys."""

    cid: U63
    path: Path
    value: Value


class SetAttribute(Entry, tag=47):
    """Publishes a value as an attribute of the instance; readers get the last value, nobody waits."""

    name: Name
    value: Value
    writable: bool = False


class AddDevice(Entry, tag=48):
    """Registers one more device of this instance."""

    cid: U63
    name: Name
    properties: Properties = {}


class RemoveDevice(Entry, tag=49):
    """Takes a device away."""

    cid: U63
    name: Name


class AddChardev(Entry, tag=50):
    """Registers ``/dev/NAME``; its operations arrive as requests."""

    cid: U63
    name: Name


class SetPoll(Entry, tag=51):
    """What ``poll`` on ``/dev/NAME`` reports: 1 readable, 4 writable (POLLIN, POLLOUT)."""

    name: Name
    mask: U31


class FollowKmsg(Entry, tag=52):
    """kmsg as a stream of events with topic ``kmsg``, from ``min_level`` down to 0."""

    cid: U63
    max_level: Annotated[int, Meta(ge=0, le=7)] = 7
    oldest: bool = False


class Hint(Entry, tag=53):
    """A recommendation for a decision site; valid for one generation and ``ttl_ns``."""

    cid: U63
    site: Name
    generation: U63
    ttl_ns: U63
    payload: Payload
    dataset: U63 = 0
    """Number of the dataset that it was derived from, or 0."""
    dataset_generation: U63 = 0
    predicted: I64 = 0
    """What the agent expects to come of it, in the site's own unit."""
    standing: bool = False
    """In force until its time is over or the next one comes, rather than used up by one decision."""


class Charge(Entry, tag=54):
    """Declares thinking time, charged in virtual time (charged clock) and in the account."""

    cost_ns: U63


class Model(Entry, tag=55):
    """A command for the model proxy ``model`` (``struct ml_lib_bpf_cmd_ctx``): a :class:`~uxk.uapi.ml.ModelCommand`.

    Offset and size, in bytes, are those of a portion; size 0 means all there is from there on.
    """

    cid: U63
    model: Name
    command: U31
    dataset: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""
    offset: U63 = 0
    size: U63 = 0


class RecommendSysctl(Entry, tag=56):
    """A sysctl write on trial: undone after ``lifetime_ns`` (0: the longest allowed) unless it is confirmed.

    The answer's ``result`` is the action's number; what becomes of it arrives as events with topic ``action``.
    """

    cid: U63
    sysctl: Path
    value: Value
    lifetime_ns: U63 = 0
    why: Text = ""


class SettleAction(Entry, tag=57):
    """Asks to keep the value of an action on trial, or takes it back."""

    cid: U63
    action: U63
    keep: bool = True


class OfferSite(Entry, tag=58):
    """Opens a decision site of the extension's own: agents advise it as any other.

    ``site`` is ``DEVICE.NAME`` with a device of the instance's; its model is called ``DEVICE-NAME``.  It
    has ``units`` parts that share no state; some of them follow hints.  With a ``schema`` there is a dataset ``rows``.
    ``modes`` are settings of :class:`uxk.core.mode.ModeConfig`.
    """

    cid: U63
    site: Name
    units: Annotated[int, Meta(ge=1, le=65_536)] = 1
    schema: Annotated[tuple[tuple[Name, Name], ...], Meta(max_length=64)] = ()
    rows_max: Annotated[int, Meta(ge=1, le=1 << 20)] = 1
    modes: Annotated[dict[Name, U63], Meta(max_length=32)] = {}
    start: bool = True
    """Whether the model is started at once; else who wants advice taken writes to its ``control``."""
    on_demand: bool = False
    """Whether rows are made when somebody asks for them, by an event ``prepare``: answer with :class:`FillDataset`."""


class EndEpoch(Entry, tag=59):
    """What the two arms of a site of one's own did in an epoch.

    KPIs are above 0, lower is better, and 0 stands for an arm without units.  Answered with a
    :class:`uxk.uapi.ml.SiteState`: what to follow until the next.  ``refused`` says why the hint in force could not be
    followed.
    """

    cid: U63
    site: Name
    default_kpi: U63 = 0
    hinted_kpi: U63 = 0
    weight: U63 = 0
    hinted_weight: U63 = 0
    rows: Payload = b""
    refused: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""


class RecommendBuild(Entry, tag=60):
    """A build of a running module with these constants baked in, on probation; answered when that is over.

    Status 0: it runs.  Else the payload says why the build from before runs on.
    """

    cid: U63
    module: Name
    constants: Fields = {}
    why: Text = ""


class FillDataset(Entry, tag=61):
    """Rows for a site of one's own whose dataset is made on demand; ``result`` is the new generation.

    If making them ``failed``, the reason: the dataset is in EXTRACTION_FAILURE then.
    """

    cid: U63
    site: Name
    rows: Payload = b""
    failed: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""


class InjectPolicy(Entry, tag=62):
    """Bytecode that is to decide at a site in the kernel itself; answered at the end of its shadow period.

    Status 0: it decides from now on, and ``result`` is the generation.  Else the payload says why it does not.  With
    ``weights`` it reads them from its map 0: a 64-bit generation, then two areas, of which the one that is in force has
    the number of the generation's lowest bit.
    """

    cid: U63
    site: Name
    code: Payload
    weights: Payload = b""
    why: Text = ""


class JudgePolicy(Entry, tag=63):
    """What the model itself would have decided, 8 bytes a decision: the answer to an event ``shadow``."""

    cid: U63
    injection: U63
    first: U63
    verdicts: Payload


class UpdatePolicy(Entry, tag=64):
    """Other weights of an injected policy, as many bytes as before; ``result`` is their generation."""

    cid: U63
    injection: U63
    weights: Payload


class LoadProgram(Entry, tag=65):
    """A program for a queue or an instance's events, in force from now on; ``result`` is its number.

    In the place of ``replaces``, a number of the instance's own, if that is not 0; else behind those that are there.
    ``arrays`` are maps that it knows as 0, 1 ...: bytes of a value, number of values.
    """

    cid: U63
    at: Name
    code: Payload
    arrays: Annotated[tuple[tuple[U31, U31], ...], Meta(max_length=8)] = ()
    replaces: U63 = 0


Up: TypeAlias = (
    Submit | Ready | Log | Open | Derive | Revoke | Allocate | Free | Acquire | Release | Publish | Pin | Unpin
    | TreeRead | TreeWrite | SetAttribute | AddDevice | RemoveDevice | AddChardev | SetPoll | FollowKmsg | Hint
    | Charge | Model | RecommendSysctl | SettleAction | OfferSite | EndEpoch | RecommendBuild
    | FillDataset | InjectPolicy | JudgePolicy | UpdatePolicy | LoadProgram
)  # fmt: skip
