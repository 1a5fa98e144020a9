"""The control protocol: how another process reaches a running kernel (``uxk -k SOCKET``).

Over a Unix stream socket; each message is a little-endian u32 length and that many bytes of MessagePack: one
entry, in the style of :mod:`uxk.uapi.entries`.  The client speaks first, with :class:`Hello`; its form never
changes, so that any two versions can find out whether they understand each other.  Then it sends requests, one at a
time.  The answer to a request is a :class:`Failure`, or a value: the bytes of one or more :class:`Part`, joined,
are the MessagePack of the type that the request's docstring names.  :class:`Follow` is answered with values until
:class:`End`; the client stops it by hanging up.

Since version 2 there are also requests for the kernel's files (:class:`StatFile` and after it).  Any number of those,
up to ``FILE_REQUESTS_MAX``, may be under way at a time; they are answered as they end, the parts of one answer between
those of others, and :class:`Cancel` ends one early.  Files that were opened belong to the connection, and are closed
with it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from msgspec import Meta, Struct, field

from uxk.limits import PATH_MAX_BYTES
from uxk.uapi.entries import I64, U31, U63, Entry, Name, Path, Payload, Value
from uxk.uapi.info import Record
from uxk.uapi.supervisor import SupervisorSpec

VERSION: Final = 2
"""Version of the protocol that this file describes."""
VERSION_OLDEST: Final = 1
"""Oldest version that is still spoken: without files, one request at a time."""
VERSION_FILES: Final = 2
"""First version with requests for files."""
FILE_REQUESTS_MAX: Final = 256
"""Requests for files under way on one connection; one more is EAGAIN."""
FILES_MAX: Final = 256
"""Files open on one connection; one more is EMFILE."""
REPLY_MAX_BYTES: Final = 64 << 20
"""Largest value in an answer, its parts together: neither side keeps more for the other."""
PART_MAX_BYTES: Final = 256 << 10
"""Bytes of a value in one message."""
MESSAGE_MAX_CHARS: Final = 4096
"""Longest error message."""
PARAMS_MAX: Final = 256
"""Parameters in one request."""

Text: TypeAlias = Annotated[str, Meta(max_length=MESSAGE_MAX_CHARS)]
InstanceName: TypeAlias = Annotated[str, Meta(max_length=255)]
"""Empty for the module's own name; the kernel says what is wrong with one that is too long."""
ParamTexts: TypeAlias = Annotated[dict[Name, Value], Meta(max_length=PARAMS_MAX)]
Command: TypeAlias = Annotated[str, Meta(max_length=255)] | I64
"""An ioctl's name or number."""
LevelMask: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
"""Bit n stands for kmsg level n."""

# --- client to kernel ---------------------------------------------------------------------------------


class Hello(Entry, tag=1):
    """First message: the oldest and newest versions that the client speaks.  Answered by :class:`Welcome`."""

    oldest: U31
    newest: U31


class ListModules(Entry, tag=2):
    """Loaded instances, or modules that could be loaded: ``tuple[ModuleRow, ...]``."""

    cid: U63
    available: bool = False


class Modprobe(Entry, tag=3):
    """Loads a module by name or alias with what it depends on: the instance's name, ``str``."""

    cid: U63
    name: Path
    params: ParamTexts = field(default_factory=dict)
    instance: InstanceName = ""


class Insmod(Entry, tag=4):
    """Loads a single file that the kernel can read, by absolute path: the instance's name, ``str``."""

    cid: U63
    path: Path
    params: ParamTexts = field(default_factory=dict)
    instance: InstanceName = ""


class Rmmod(Entry, tag=5):
    """Unloads an instance: ``None``."""

    cid: U63
    name: Path


class Modinfo(Entry, tag=6):
    """What a module says of itself: :class:`ModuleInfo`."""

    cid: U63
    name: Path


class Depmod(Entry, tag=7):
    """Dependencies and aliases of every module that can be found: :class:`Dependencies`."""

    cid: U63


class Dmesg(Entry, tag=8):
    """The records held: :class:`LogBatch`."""

    cid: U63
    levels: LevelMask = 255


class Follow(Entry, tag=9):
    """Records as they come, after those held already if ``oldest``: :class:`LogBatch`, again and again.

    The kernel never waits for a slow client: what is overwritten before it was sent is counted as lost.
    """

    cid: U63
    levels: LevelMask = 255
    oldest: bool = True


class ReadAttribute(Entry, tag=10):
    """An attribute's text: ``str``."""

    cid: U63
    path: Path


class WriteAttribute(Entry, tag=11):
    """Writes an attribute: ``None``."""

    cid: U63
    path: Path
    value: Value


class ListDirectory(Entry, tag=12):
    """A directory's entries by name: ``tuple[TreeEntry, ...]``."""

    cid: U63
    path: Path


class StatPath(Entry, tag=13):
    """What is there; a link at the end is not followed: :class:`TreeEntry`."""

    cid: U63
    path: Path


class Render(Entry, tag=14):
    """A picture of a directory and all below it: ``str``."""

    cid: U63
    path: Path
    values: bool = False


class Statistics(Entry, tag=15):
    """Figures of an instance, or of the kernel if ``name`` is empty: ``dict[str, Any]``."""

    cid: U63
    name: InstanceName = ""


class Upgrade(Entry, tag=16):
    """Replaces the build of an instance, by itself if ``to`` is empty: its version, ``str``, after its probation.

    ``to`` is a version, or the absolute path of a file or a package's folder.
    """

    cid: U63
    name: Path
    to: Annotated[str, Meta(max_length=PATH_MAX_BYTES)] = ""
    params: ParamTexts = field(default_factory=dict)
    quiesce_ns: U63 | None = None
    probation_ns: U63 | None = None
    kpi: Annotated[str, Meta(max_length=64)] = ""
    """``latency``, or none."""


class Supervise(Entry, tag=17):
    """Puts instances under a supervisor: ``None``."""

    cid: U63
    spec: SupervisorSpec


class Unsupervise(Entry, tag=18):
    """Takes a supervisor away: ``None``."""

    cid: U63
    name: Path


class Metrics(Entry, tag=48):
    """All counters at one instant: :class:`uxk.uapi.metrics.Snapshot`."""

    cid: U63


class StatFile(Entry, tag=19):
    """What is there, ``/dev`` included; a link at the end is not followed: :class:`FaceStat`."""

    cid: U63
    path: Path


class ScanFolder(Entry, tag=20):
    """A folder's names with what is there: ``dict[str, FaceStat]``."""

    cid: U63
    path: Path


class ReadLink(Entry, tag=21):
    """Where a link points: ``str``."""

    cid: U63
    path: Path


class ReadFile(Entry, tag=22):
    """An attribute as ``cat`` shows it, or the beginning of a stored file: ``bytes``."""

    cid: U63
    path: Path


class ReadRange(Entry, tag=23):
    """A range of a stored file: ``bytes``."""

    cid: U63
    path: Path
    offset: U63
    size_bytes: U31


class WriteFile(Entry, tag=24):
    """Writes an attribute: ``None``."""

    cid: U63
    path: Path
    data: Payload


class OpenFile(Entry, tag=25):
    """Opens an attribute, a stored file or a char device: a number for the requests below, ``int``."""

    cid: U63
    path: Path
    mode: Literal["r", "w", "rw"] = "r"


class ReadOpen(Entry, tag=26):
    """Reads an open file: ``bytes``.  Without ``wait``, EAGAIN where there is nothing yet."""

    cid: U63
    file: U31
    size_bytes: U31
    wait: bool = True


class WriteOpen(Entry, tag=27):
    """Writes an open file: how much was taken, ``int``."""

    cid: U63
    file: U31
    data: Payload


class PollOpen(Entry, tag=28):
    """Waits until an open file is ready for something of ``mask``: for what, ``int``."""

    cid: U63
    file: U31
    mask: U31


class IoctlOpen(Entry, tag=29):
    """A typed ioctl of an open char device, by name or number: plain values, ``Any``."""

    cid: U63
    file: U31
    command: Command
    argument: Any = None


class CloseOpen(Entry, tag=30):
    """Closes an open file: ``None``."""

    cid: U63
    file: U31


class Cancel(Entry, tag=31):
    """Ends the request for files ``cid`` early: it is answered with ECANCELED, unless it was over.  Has no answer."""

    cid: U63


FileRequest: TypeAlias = (
    StatFile | ScanFolder | ReadLink | ReadFile | ReadRange | WriteFile | OpenFile | ReadOpen | WriteOpen | PollOpen
    | IoctlOpen | CloseOpen
)  # fmt: skip
Request: TypeAlias = (
    ListModules | Modprobe | Insmod | Rmmod | Modinfo | Depmod | Dmesg | Follow | ReadAttribute | WriteAttribute
    | ListDirectory | StatPath | Render | Statistics | Upgrade | Supervise | Unsupervise
    | Metrics | FileRequest
)  # fmt: skip
ToKernel: TypeAlias = Hello | Request | Cancel

# --- kernel to client ---------------------------------------------------------------------------------


class Welcome(Entry, tag=64):
    """The version to be spoken, and who answers."""

    version: U31
    clock: Name
    pid: U31


class Part(Entry, tag=65):
    """A part of the answer to ``cid``; ``more`` says that the value goes on in the next message."""

    cid: U63
    data: bytes
    more: bool = False


class End(Entry, tag=66):
    """No more values will follow for ``cid``: the kernel shuts down."""

    cid: U63


class Failure(Entry, tag=67):
    """The request failed, or, with ``cid`` 0, the connection: the kernel closes it.

    ``kind`` is the name of a class in :mod:`uxk.errors`.
    """

    cid: U63
    errno: U31
    kind: Name
    message: Text


ToClient: TypeAlias = Welcome | Part | End | Failure

# --- values -------------------------------------------------------------------------------------------


class LogBatch(Struct, frozen=True):
    """Records, oldest first, and how many were overwritten before this client read them."""

    records: tuple[Record, ...]
    lost: int = 0


class TreeEntry(Struct, frozen=True):
    """One entry of the tree; ``target`` is where a link points."""

    name: str
    kind: Literal["dir", "file", "link"]
    mode: int
    size_bytes: int
    target: str = ""


class FaceStat(Struct, frozen=True):
    """One file of a face (:mod:`uxk.bridges.face.api`), as ``lstat`` tells it."""

    kind: Literal["dir", "file", "link", "chardev"]
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    size_bytes: int
    """As sysfs: a page for every attribute, however long its text; exact if ``stored``."""
    mtime_ns: int
    """Since 1970.  It moves when an attribute is notified, or written through this face."""
    id: int
    """Positive and below 2**63; the same as long as the path means the same."""
    stored: bool = False
    """Data that lie somewhere, to be read in pieces; else the text is made when it is read."""


Figures: TypeAlias = dict[str, Any]


class Versions(NamedTuple):
    """A range of protocol versions, both ends included."""

    oldest: int = VERSION_OLDEST
    newest: int = VERSION

    def common(self, other: Versions) -> int | None:
        """The newest version that both speak, or None."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None
