"""An extension that tries what it is told to, and says how it went: ``""``: it was allowed, else the error's name."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uxk
from uxk.actor import mapping, wire

_libc = ctypes.CDLL(None, use_errno=True)
_X32 = 0x40000000


class Attacker(uxk.Extension):
    manifest = uxk.Manifest(
        name="attacker", capabilities=("device:*:submit",),
        budget=uxk.Budget(memory_bytes=300 * 4096, queue_depth=512),
        restart=uxk.RestartPolicy(max_restarts=100, backoff_ns=10),
        sandbox=uxk.Sandbox(memory_bytes=256 << 20, files=64),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.views: dict[str, memoryview] = {}
        self.next = ("r",)
        self.served = b""
        self.mine: list[int] = []
        for _ in range(300):
            ctx.allocate(1).then(lambda answer: self.mine.append(answer.result))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode != uxk.Op.CALL:
                self.serve(ctx, request)
                continue
            try:
                done = self.obey(ctx, *request.payload.decode().split()) or ""
            except BaseException as exc:
                number = getattr(exc, "errno", None)
                done = errno.errorcode[number] if number else type(exc).__name__
            ctx.complete(request, done.encode())

    def serve(self, ctx: uxk.Context, request: uxk.Request) -> None:
        """A request with memory: looks at it, and at the memory of the one before."""
        view = ctx.map(request.region, writable="w" in self.next)
        if "w" in self.next:
            view[:5] = b"reply"
        self.served = bytes(view[:5])
        ctx.complete(request, result=request.length)

    def obey(self, ctx: uxk.Context, word: str, *rest: str) -> str | None:
        if word in ATTACKS:
            ATTACKS[word](*rest)
            return None
        if word == "status":
            with open("/proc/self/status") as file:
                return "".join(line for line in file if line.startswith(rest))
        if word == "next":
            self.next = rest
            return None
        if word == "served":
            return self.served.decode()
        if word == "flood":
            flood(int(rest[0]))
        if word == "hoard":
            self.hoarded = [ctx.map(cap) for cap in self.mine[: int(rest[0])]]
            return None
        if word == "forget":
            for cap in self.mine:
                ctx.free(cap)
            return None
        if word == "reopen":
            reopen(ctx, int(rest[0]))
            return None
        if word == "environ":
            return " ".join(os.environ)
        if word == "map":
            self.views[rest[0]] = ctx.map(int(rest[0]), writable=rest[1:] == ("w",))
        elif word == "see":
            return bytes(self.views[rest[0]][:8]).decode()
        elif word == "put":
            self.views[rest[0]][: len(rest[1])] = rest[1].encode()
        elif word == "poke":  # as code that does not ask
            ctypes.memset(address(self.views[rest[0]]), 7, 1)
        elif word == "poke_at":
            ctypes.memset(int(rest[0]), 7, 1)
        elif word == "peek":
            return ctypes.string_at(int(rest[0]), 8).decode()
        elif word == "address":
            return str(address(self.views[rest[0]]))
        return None


def address(view: memoryview) -> int:
    pointer = ctypes.py_object(view)
    buffer = (ctypes.c_ssize_t * 16)()
    ctypes.pythonapi.PyObject_GetBuffer(pointer, ctypes.byref(buffer), 0)
    found = buffer[0]
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return found


def call(function: Any, *args: Any) -> None:
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), "")


def flood(cap: int) -> None:
    """Asks the kernel for memory, and reads no answer."""
    with socket.socket(fileno=os.dup(3)) as link:
        link.setblocking(True)
        link.sendall(wire.packed(wire.Map(cap, False)) * 100_000)


def reopen(ctx: uxk.Context, cap: int) -> None:
    """Keeps the descriptor that the runtime gets, and opens what it leads to once more, for writing."""
    kept: list[int] = []
    view = mapping.Mappings.view

    def spy(self: Any, cap: int, region: int, generation: int, descriptor: int, *rest: Any) -> memoryview:
        kept.append(os.dup(descriptor))
        return view(self, cap, region, generation, descriptor, *rest)

    mapping.Mappings.view = spy  # type: ignore[method-assign]
    try:
        ctx.map(cap)
    finally:
        mapping.Mappings.view = view  # type: ignore[method-assign]
    with contextlib.suppress(OSError):
        os.fchmod(kept[0], 0o666)
    mmap.mmap(os.open(f"/proc/self/fd/{kept[0]}", os.O_RDWR), 4096)


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def fork_bomb() -> None:
    for _ in range(1000):
        fork()


def memory_bomb() -> None:
    taken = []
    while True:
        taken.append(b"\1" * (16 << 20))


def shared_memory_bomb() -> None:
    taken = []
    while True:
        taken.append(mmap.mmap(-1, 256 << 20))


def descriptor_bomb() -> None:
    taken: list[int] = []
    try:
        while len(taken) < 10_000:
            taken += os.pipe()
    finally:
        for descriptor in taken:
            os.close(descriptor)


def thread_bomb() -> None:
    gate = threading.Event()
    threads = []
    try:
        for _ in range(10_000):
            threads.append(threading.Thread(target=gate.wait))
            threads[-1].start()
    finally:
        gate.set()
        for thread in threads[:-1]:
            thread.join()


def signal_by_pipe(pid: str) -> None:
    """Linux sends a signal of one's choice to whoever is named as the owner of a pipe."""
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, int(pid))
    fcntl.fcntl(read, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write, b"x")


def vm_read(pid: str) -> None:
    call(_libc.process_vm_readv, int(pid), None, 0, None, 0, 0)


def write_file(path: str) -> None:
    with open(path, "w") as file:
        file.write("x")


def read_file(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def descriptors() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc/self/fd"))


def inherited() -> None:
    """Descriptors that are none of the runtime's: files of whoever started the kernel."""
    for each in descriptors():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{each}")
            if each > 3 and not target.startswith(("socket:", "anon_inode:", "pipe:", "/proc/")):
                raise OSError(errno.EEXIST, target)


ATTACKS: dict[str, Callable[..., object]] = {
    "fork": fork,
    "fork_bomb": fork_bomb,
    "vfork": lambda: subprocess.run(["/bin/true"]),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "memory_bomb": memory_bomb,
    "shared_memory_bomb": shared_memory_bomb,
    "descriptor_bomb": descriptor_bomb,
    "thread_bomb": thread_bomb,
    "memfd": lambda: os.memfd_create("x"),
    "kill": lambda pid: os.kill(int(pid), signal.SIGKILL),
    "kill_group": lambda: os.kill(0, signal.SIGKILL),
    "kill_all": lambda: os.kill(-1, signal.SIGKILL),
    "thread_kill": lambda pid: call(_libc.syscall, 200, int(pid), signal.SIGKILL),
    "pidfd": lambda pid: os.pidfd_open(int(pid)),
    "signal_by_pipe": signal_by_pipe,
    "ptrace": lambda pid: call(_libc.ptrace, 16, int(pid), 0, 0),
    "vm_read": vm_read,
    "read": read_file,
    "write": write_file,
    "unlink": os.unlink,
    "chmod": lambda path: os.chmod(path, 0o777),
    "mkdir": os.mkdir,
    "socket": lambda: socket.socket().close(),
    "udp": lambda: socket.socket(type=socket.SOCK_DGRAM).close(),
    "unix": lambda: socket.socket(socket.AF_UNIX).close(),
    "pair": lambda: [each.close() for each in socket.socketpair()],
    "limit_of": lambda pid: resource.prlimit(int(pid), resource.RLIMIT_NOFILE, (8, 8)),
    "raise_limit": lambda: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40)),
    "slow_down": lambda pid: os.setpriority(os.PRIO_PROCESS, int(pid), 19),
    "pin": lambda pid: os.sched_setaffinity(int(pid), {0}),
    "survive": lambda: call(_libc.prctl, 1, 0, 0, 0, 0),
    "survive_by_trick": lambda: call(_libc.syscall, 157, ctypes.c_long(1 | 1 << 40), 0, 0, 0, 0),
    "mount": lambda: call(_libc.mount, b"none", b"/mnt", b"tmpfs", 0, None),
    "namespace": lambda: call(_libc.unshare, 0x10000000),
    "remove_memory": lambda number: call(_libc.shmctl, int(number), 0, None),
    "remove_messages": lambda number: call(_libc.msgctl, int(number), 0, None),
    "take_message": lambda number: call(_libc.msgrcv, int(number), ctypes.create_string_buffer(64), 8, 0, 0o4000),
    "remove_semaphore": lambda number: call(_libc.semctl, int(number), 0, 0),
    "remove_queue": lambda name: call(_libc.mq_unlink, name.encode()),
    "uring": lambda: call(_libc.syscall, 425, 8, None),
    "x32": lambda: call(_libc.syscall, _X32 | 57),
    "inherited": inherited,
    "thread": lambda: threading.Thread(target=print).start(),
    "numpy": lambda: __import__("numpy").ones((64, 64)) @ __import__("numpy").ones((64, 64)),
}
