"""A state machine of system calls on a real mount: bytes and errnos are those of the tree behind it."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from fusebox import WITHIN_S, get, needs_fuse, put
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import uxk
from uxk.bridges.fuse.mountpoint import fstype_at
from uxk.core.tree import Attribute
from uxk.limits import SHOW_MAX_BYTES

BASE = "sys/t"
NAMES = st.sampled_from(["a", "b", "c"])
ODD = st.sampled_from([
    b"", b"sys/..", b"sys/t/../../dev", b"sys/kernel/seed", b"sys/kernel/seed/x", b"sys/t/\xff", b"sys/t/a\n",
    b"x" * 256, b"sys/t/" + b"y" * 255, b"sys/./t/.", b"sys/t/" + "\u202e".encode(), b"dev/kmsg/x",
])  # fmt: skip
"""None of them is a file that can be made, removed, or written."""
DATA = st.binary(min_size=1, max_size=6) | st.sampled_from([
    b"x" * SHOW_MAX_BYTES, b"x" * (SHOW_MAX_BYTES + 1), b"z" * (1 << 20), b"\xff", "ü\n".encode(), b"1\n", b"\n",
])  # fmt: skip
REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EBUSY,
                     errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EROFS, errno.EXDEV})  # fmt: skip


def failing(call: Callable[[], object]) -> int:
    """The errno of a system call, 0 if it succeeds."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Attr:
    """What an attribute should be."""

    def __init__(self, writable: bool) -> None:
        self.writable = writable
        self.text = "new"

    def store(self, _: object, text: str) -> None:
        """As the kernel calls it."""
        self.text = text

    @property
    def shown(self) -> bytes:
        """What read(2) gives."""
        raw = self.text.removesuffix("\n").encode()
        text = raw[: SHOW_MAX_BYTES - 1].decode(errors="ignore")  # a page, with the newline
        return f"{text}\n".encode() if text else b""


class Mounted(RuleBasedStateMachine):
    """The kernel and the mount live in a thread of their own; each rule is system calls, or a change of the tree."""

    def __init__(self) -> None:
        super().__init__()
        self.attrs: dict[str, Attr] = {}
        self.open: list[tuple[int, Attr]] = []
        self.parts: list[Any] = []
        self.started = threading.Event()
        self.thread = threading.Thread(target=trio.run, args=(self._serve,))
        self.thread.start()
        assert self.started.wait(WITHIN_S)
        self.kernel, self.root, self.stop, self.token = self.parts
        self.in_kernel(lambda: self.kernel.sysfs.add(f"/{BASE}", {}))

    async def _serve(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as name:
                async with uxk.Kernel(seed=1) as kernel, kernel.mount(name) as mount:
                    stop = trio.Event()
                    self.parts += [kernel, Path(mount.folder), stop, trio.lowlevel.current_trio_token()]
                    self.started.set()
                    await stop.wait()
                assert fstype_at(mount.folder) == ""
        finally:
            self.started.set()

    def in_kernel(self, function: Callable[[], Any]) -> Any:
        """In the kernel's thread."""
        return trio.from_thread.run_sync(function, trio_token=self.token)

    def teardown(self) -> None:
        for fd, _ in self.open:
            os.close(fd)
        self.in_kernel(self.stop.set)
        self.thread.join(WITHIN_S)
        assert not self.thread.is_alive()

    # --- what the kernel does ---

    @rule(name=NAMES, writable=st.booleans())
    def add(self, name: str, writable: bool) -> None:
        if name in self.attrs:
            return
        attr = self.attrs[name] = Attr(writable)
        made = Attribute(name, lambda _: attr.text, attr.store if writable else None)
        self.in_kernel(lambda: self.kernel.sysfs.add_attribute(f"/{BASE}", made))

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if self.attrs.pop(name, None) is not None:
            self.in_kernel(lambda: self.kernel.sysfs.remove(f"/{BASE}/{name}"))

    # --- what others do ---

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        path, attr = self.root / BASE / name, self.attrs.get(name)
        if attr is None:
            assert failing(lambda: get(path)) == errno.ENOENT
        else:
            assert get(path) == attr.shown
            assert path.stat().st_size == len(attr.shown)

    @rule(name=NAMES, data=DATA, append=st.booleans())
    def write(self, name: str, data: bytes, append: bool) -> None:
        path, attr = self.root / BASE / name, self.attrs.get(name)
        before = attr.text if attr else ""
        found = failing(lambda: put(path, data, os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)))
        if attr is None:
            assert found == errno.ENOENT
        elif not attr.writable:
            assert found == errno.EACCES
        elif len(data) > SHOW_MAX_BYTES:
            assert (found, attr.text) == (errno.E2BIG, before)
        elif found:
            assert (found, attr.text) == (errno.EINVAL, before)
            assert not is_text(data)
        else:
            assert attr.text == data.decode().removesuffix("\n")

    @rule(name=NAMES, flags=st.sampled_from([os.O_RDONLY, os.O_RDWR]))
    def begin(self, name: str, flags: int) -> None:
        attr = self.attrs.get(name)
        if attr is not None and (attr.writable or flags == os.O_RDONLY) and len(self.open) < 8:
            self.open.append((os.open(self.root / BASE / name, flags), attr))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=st.integers(0, 5))
    def go_on(self, data: st.DataObject, offset: int) -> None:
        """An open file is its attribute's until that goes, and nobody's then, whatever has the name."""
        fd, attr = data.draw(st.sampled_from(self.open))
        if attr in self.attrs.values():
            os.pread(fd, 1, 0)
            assert os.pread(fd, 1 << 16, offset) == attr.shown[offset:]
        else:
            assert failing(lambda: os.pread(fd, 10, 0)) == errno.ENODEV

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.open))
        self.open.remove(each)
        os.close(each[0])

    @rule(name=ODD, other=ODD)
    def meddle(self, name: bytes, other: bytes) -> None:
        """Nothing can be made, removed or renamed, by whatever name, and the way out is not through the mount."""
        path, second = os.path.join(os.fsencode(self.root), name), os.path.join(os.fsencode(self.root), other)
        calls: dict[str, Callable[[], object]] = {
            "mkdir": lambda: os.mkdir(path), "rmdir": lambda: os.rmdir(path), "unlink": lambda: os.unlink(path),
            "link": lambda: os.link(path, second), "symlink": lambda: os.symlink(b"/etc/passwd", path),
            "chmod": lambda: os.chmod(path, 0o777), "mknod": lambda: os.mknod(path),
            "create": lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT)),
        }  # fmt: skip
        if name != other:  # to itself is no renaming: Linux does not even ask (fs/namei.c: vfs_rename)
            calls["rename"] = lambda: os.rename(path, second)
        for call, act in calls.items():
            assert failing(act) in REFUSED, call

    @invariant()
    def listed(self) -> None:
        """A folder has the names that there are, and the whole tree can be walked."""
        assert sorted(os.listdir(self.root / BASE)) == sorted(self.attrs)


TestMounted = needs_fuse(Mounted.TestCase)
TestMounted.settings = settings(max_examples=6, stateful_step_count=20, deadline=None)
