"""What a host process gives up before any code of its module runs.

Limits of the C library's kind hold everywhere (``setrlimit(2)``, ``prctl(2)``, capabilities).  A filter of system
calls (seccomp) and of files (Landlock) come with the packages of ``pip install uxk[sandbox]``; docs/isolation.md says
what each of them is for, and what is not kept out.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import importlib.util
import os
import resource
import signal
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from uxk.actor import syscalls
from uxk.uapi.manifest import Sandbox

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAP_LAST: Final = 63
"""More than Linux has (40): what it does not know it refuses."""
_CAPABILITY_VERSION_3: Final = 0x20080522
SPARE_FILES: Final = 16
"""Descriptors that the runtime itself may open: a region on its way, a module being imported."""
_ENVIRONMENT: Final = ("PYTHON", "LC_", "UXK_", "OMP_", "OPENBLAS_", "NUMBA_", "COVERAGE_")
_VARIABLES: Final = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"})
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Numerical libraries start a thread for each processor when imported: before the filters, and so outside them."""
_SYSTEM: Final = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime",
    "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo", "/proc/self",
    "/sys/devices/system/cpu",
)  # fmt: skip
"""Readable to all: libraries, and what they look at."""
_NETWORK: Final = (
    "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols", "/etc/gai.conf",
    "/etc/ssl", "/usr/share/ca-certificates", "/proc/sys/net/core/somaxconn",
)  # fmt: skip
_PROGRAMS: Final = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin")
_WRITABLE: Final = ("/dev/null",)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What of a kernel's environment its host processes see: nothing that is a secret by chance."""
    kept = {
        name: value for name, value in variables.items() if name in _VARIABLES or name.startswith(_ENVIRONMENT)
    }  # fmt: skip
    return kept | _ONE_THREAD


def available() -> dict[str, bool]:
    """Which of the filters this Linux and this installation have."""
    with _library_at_hand():
        return {"seccomp": syscalls.available(), "landlock": _landlock_abi() > 0}


@functools.cache
def measures() -> str:
    """What confines every host process that runs here, as words: one that could not be confined so does not run."""
    if sys.platform != "linux":
        return ""
    return " ".join(["rlimits", "no_new_privs", *(name for name, there in sorted(available().items()) if there)])


def die_with_parent(parent: int) -> None:
    """Linux ends this process when the kernel's dies; EOF on the socket does elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def close_descriptors(keep: int) -> None:
    """Closes all but the standard ones and ``keep``: what the kernel's process has inherited is nobody's business."""
    for each in map(int, os.listdir("/proc/self/fd")):
        if each > 2 and each != keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(each)


def enter(
    sandbox: Sandbox, mapped_bytes: int, search: Sequence[str] = (), *, execute: bool = False, shared: bool = False
) -> list[str]:  # fmt: skip
    """Confines this process for good; returns what it is confined by, as words for a log.

    ``mapped_bytes`` is shared memory that it may map beside its own, ``search`` what it imports from.  Call it in the
    only thread.  With ``execute`` it may turn into any program that it can read, confined as it is itself.  The limits
    of a ``shared`` process can be raised, by its kernel alone if there is a filter of system calls.
    Raises OSError if the host refuses a measure that it has.
    """
    if sys.platform != "linux":
        return []
    taken = ["rlimits", "no_new_privs"]
    _limit(sandbox, mapped_bytes, shared)
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    if _drop_capabilities(libc):
        taken.append("capabilities")
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    filters = available()
    with _library_at_hand():
        if filters["landlock"]:
            taken.append(f"landlock {_landlock(sandbox, search, execute)}")
        if filters["seccomp"]:
            syscalls.load(sandbox, execute=execute, limits_fixed=shared)
            taken.append("seccomp")
    return taken


@contextlib.contextmanager
def _library_at_hand() -> Iterator[None]:
    """Both packages ask ``ctypes.util`` where the C library lies, which starts a compiler to find out; it is here."""
    search = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    try:
        yield
    finally:
        ctypes.util.find_library = search


# --- limits ----------------------------------------------------------------------------------------------


def _limit(sandbox: Sandbox, mapped_bytes: int, shared: bool) -> None:
    """Everything beyond what the process has by now, which is the runtime's."""
    size_bytes, data_bytes = _taken()
    # Private memory is what a bomb takes.  Shared anonymous memory counts as address space only.
    _lower(resource.RLIMIT_DATA, data_bytes + sandbox.memory_bytes, shared)
    wanted_bytes = sandbox.memory_bytes + 2 * mapped_bytes  # seen for reading and writing
    _lower(resource.RLIMIT_AS, size_bytes + wanted_bytes, shared)
    _lower(resource.RLIMIT_NOFILE, sandbox.files + SPARE_FILES, shared)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_MEMLOCK, 0)
    _lower(resource.RLIMIT_MSGQUEUE, 0)
    _lower(resource.RLIMIT_RTPRIO, 0)
    if not sandbox.write:
        _lower(resource.RLIMIT_FSIZE, 0)


def _lower(which: int, value: int, soft: bool = False) -> None:
    """Lowers a limit, for good unless ``soft``; one that is lower already stays."""
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, hard if soft else value))


def _taken() -> tuple[int, int]:
    """Bytes of address space and of private writable memory that this process has (proc(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[name].split()[0]) << 10 for name in ("VmSize", "VmData"))  # type: ignore[return-value]


# --- privileges ------------------------------------------------------------------------------------------


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    """Gives up the privileges of root, if they are there; the user stays, who may own what the module needs."""
    if _capability_bits() == 0:
        return False
    for number in range(_CAP_LAST):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # needs a privilege itself, and is no loss without it
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
    return True


def _capability_bits() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["CapPrm"], 16) | int(fields["CapInh"], 16)


# --- files (Linux: Documentation/userspace-api/landlock.rst) -----------------------------------------------


def _landlock_abi() -> int:
    """The version that can be used; 0: none."""
    if sys.platform != "linux" or importlib.util.find_spec("landlockpy") is None:
        return 0
    import landlockpy

    return landlockpy.abi_version()


def _landlock(sandbox: Sandbox, search: Sequence[str], execute: bool) -> int:
    """Reading is left where code and libraries lie, writing where the manifest says; also no signals to others.

    Returns the version of Landlock that is in force.
    """
    from landlockpy import AccessFS, AccessNet, Ruleset, Scope

    read = AccessFS.READ_FILE | AccessFS.READ_DIR
    if sandbox.processes or execute:
        read |= AccessFS.EXECUTE
    write = ~(AccessFS.EXECUTE | AccessFS.MAKE_BLOCK | AccessFS.MAKE_CHAR)
    anything = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.IOCTL_DEV | AccessFS.EXECUTE
    with Ruleset(
        handled_net=AccessNet.NONE if sandbox.network else None,
        scoped=Scope.SIGNAL | (Scope.NONE if sandbox.network else Scope.ABSTRACT_UNIX_SOCKET),
    ) as rules:
        for paths, access in ((_readable(sandbox, search, execute), read), ((*_WRITABLE, *sandbox.write), write)):
            for path in dict.fromkeys(paths):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    rules.allow_path(path, access if os.path.isdir(path) else access & anything)
        rules.restrict()
        return rules.abi_version


def _readable(sandbox: Sandbox, search: Sequence[str], execute: bool) -> Iterator[str]:
    yield from _SYSTEM
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    yield from (sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from site.getsitepackages()
    yield from (os.path.abspath(path) for path in (*sys.path, *search))
    yield from sandbox.read
    if sandbox.network:
        yield from _NETWORK
    if sandbox.processes or execute:
        yield from _PROGRAMS
