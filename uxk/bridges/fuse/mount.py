"""Mounting: a face at a folder, for as long as a block lasts."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import trio

from uxk.bridges.face.api import Face
from uxk.bridges.fuse.library import DEVICE, pyfuse3
from uxk.bridges.fuse.mountpoint import SUBTYPE, Helper, prepare
from uxk.bridges.fuse.operations import TreeOperations
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.kernel.kernel import Kernel

TIMEOUT_S: Final = 10.0
"""How long a face may take to answer before whoever asked gets ETIMEDOUT."""
TASKS_MAX: Final = 1024
"""Requests under way at a time."""

_live: list[str] = []
"""Where this process has mounted: one place at most, since pyfuse3 keeps its session in global variables."""


def mount(
    kernel: Kernel, folder: str | os.PathLike[str], *, allow_other: bool = False, page_sizes: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Mount:  # fmt: skip
    """``async with mount(kernel, folder):`` shows the tree of a kernel in this process as files; see :class:`Mount`."""
    from uxk.bridges.face.memory import MemoryFace

    return Mount(
        MemoryFace(kernel, client="mount"), folder, allow_other=allow_other, page_sizes=page_sizes,
        timeout_s=timeout_s,
    )  # fmt: skip


class Mount:
    """``async with Mount(face, folder) as mounted:`` serves a face at an existing folder, and unmounts at the end.

    Only the user who mounts it may look in, unless ``allow_other``; modes and owners are honoured in any case.
    An attribute is as long as its text now, so that tar(1) and rsync(1) work, or with ``page_sizes`` a page, as sysfs
    has it.  Who asks the face for more than ``timeout_s`` gets ETIMEDOUT.

    One per process.  This process must not touch the mount but from threads or other processes: it would wait for
    itself.  If it dies, fusermount3 unmounts, where that is installed.  Raises UsageError: ENOPKG without pyfuse3,
    ENODEV without /dev/fuse, EBUSY, EPERM, and whatever is wrong with the folder.
    """

    def __init__(
        self, face: Face, folder: str | os.PathLike[str], *, allow_other: bool = False, page_sizes: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        if not 0 < timeout_s <= 3600:
            raise UsageError(f"timeout_s={timeout_s}: expected more than 0, at most 3600")
        self.folder = os.fspath(folder)
        """Where; the real path once it is mounted."""
        self._face = face
        self._options = {"default_permissions", f"fsname={SUBTYPE}", f"subtype={SUBTYPE}"}
        if allow_other:
            self._options.add("allow_other")
        self._page_sizes = page_sizes
        self._timeout_s = timeout_s
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None
        self._operations: TreeOperations | None = None
        self._helper = Helper()
        self._gone = trio.Event()

    async def __aenter__(self) -> Mount:
        library = pyfuse3()
        if not DEVICE.exists():
            raise UsageError(f"{DEVICE}: there is none", errno=errno.ENODEV)
        if _live:
            text = f"{self.folder}: this process has mounted at {_live[0]}, and can serve one mount at a time"
            raise UsageError(text, errno=errno.EBUSY)
        if self._operations is not None:
            raise UsageError(f"{self.folder}: a mount is made once: make another one")
        self._options |= helper_options()
        self.folder = prepare(self.folder)
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._operations = handlers(library)(
            self._face, self._nursery, timeout_s=self._timeout_s, page_sizes=self._page_sizes
        )
        try:
            self._init(library)
            self._nursery.start_soon(self._serve, library)
            await self._operations.ready.wait()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave()

    async def wait_unmounted(self) -> None:
        """Returns when somebody else has unmounted it."""
        await self._gone.wait()

    @property
    def unmounted(self) -> bool:
        """Whether it is no longer served."""
        return self._gone.is_set()

    # --- inside ---

    def _init(self, library: Any) -> None:
        """Mounts.  The reason of a failure is what libfuse prints to stderr; it gives none otherwise."""
        _live.append(self.folder)
        with self._helper.noted():
            try:
                library.init(self._operations, self.folder, self._options)
            except RuntimeError as exc:
                text = f"{self.folder}: cannot mount: {exc}; libfuse has printed why"
                raise UsageError(text, errno=errno.EPERM) from exc

    async def _serve(self, library: Any) -> None:
        """Until it is unmounted."""
        await library.main(min_tasks=2, max_tasks=TASKS_MAX)
        self._gone.set()

    async def _leave(self) -> None:
        """First ends the session: who waits gets ENOTCONN, and the folder is free; then tells the face."""
        operations, nursery = self._operations, self._nursery
        assert operations is not None and nursery is not None
        nursery.cancel_scope.cancel()
        try:
            await self._close_nursery()
        finally:
            if self.folder in _live:
                operations.silence()
                pyfuse3().close(unmount=True)
                _live.remove(self.folder)
            self._gone.set()
            with trio.CancelScope(shield=True):
                await self._helper.end()
                await operations.aclose()

    async def _close_nursery(self) -> None:
        """The body's exception goes on as it is, in no group; what ended the session leaves as what it is, too."""
        try:
            await self._stack.aclose()
        except BaseExceptionGroup as group:
            inner: BaseException = group
            while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
                inner = inner.exceptions[0]
            raise inner from inner.__cause__


def helper_options() -> set[str]:
    """What makes fusermount3 unmount when this process dies.  Root can do without it; for others that is ENOPKG."""
    if shutil.which("fusermount3", path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/bin") is not None:
        return {"auto_unmount"}
    if os.geteuid() != 0:
        raise UsageError("mounting needs fusermount3: install fuse3", errno=errno.ENOPKG)
    return set()


def handlers(library: Any) -> type[TreeOperations]:
    """The handlers as pyfuse3 wants them: what they lack, its own class refuses."""
    mixed: type[TreeOperations] = type("Operations", (TreeOperations, library.Operations), {})
    return mixed
