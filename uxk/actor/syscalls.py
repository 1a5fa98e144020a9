"""The filter of system calls that a host process runs behind: what it has no business with fails with EPERM.

It lists what is denied, not what is allowed: an interpreter with numerical libraries uses most of Linux, and differs
from version to version.  Groups follow systemd's (``systemd.exec(5)``, SystemCallFilter).
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import platform
import socket
import sys
from typing import TYPE_CHECKING, Final

from uxk.uapi.manifest import Sandbox

if TYPE_CHECKING:
    from seccompy import ArgCmp, Filter

_INT: Final = 0xFFFFFFFF
"""Linux looks at the low half of an argument that is an int; so must a rule that denies."""
_CLONE_THREAD: Final = 0x10000
_X32: Final = 0x40000000
"""Marks system calls of x86's third kind, which most Linuxes do not have; a second name for those denied here."""
_X32_OWN: Final = range(512, 548)

_OTHERS: Final = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "pidfd_open",
    "pidfd_getfd", "pidfd_send_signal", "tkill", "move_pages", "migrate_pages",
)  # fmt: skip
"""Reach into other processes."""
_SYSTEM: Final = (
    "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "mount", "umount2", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
    "pivot_root", "chroot", "unshare", "setns", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "sethostname", "setdomainname", "settimeofday", "clock_settime",
    "adjtimex", "clock_adjtime", "quotactl", "quotactl_fd", "acct", "syslog", "vhangup", "nfsservctl", "iopl", "ioperm",
    "modify_ldt", "add_key", "keyctl", "request_key", "open_by_handle_at", "name_to_handle_at", "lookup_dcookie",
    "mknod", "mknodat", "personality",
)  # fmt: skip
"""Change the machine, or are doors to the kernel of Linux that no extension needs."""
_USERS: Final = (
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
)  # fmt: skip
_MEMORY: Final = ("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "semget", "mq_open")
"""Memory that no limit of a process counts."""
_IPC: Final = ("shmctl", "msgctl", "msgsnd", "msgrcv", "semctl", "semop", "semtimedop", "mq_unlink")
"""Objects of System V and POSIX that others have made: numbers and names lead to them, past Landlock, and whoever is of
the same user may remove them."""
_PROCESSES: Final = ("fork", "vfork", "execve", "execveat")
_SOCKETS: Final = ("socket", "connect", "bind", "listen", "accept", "accept4")
"""Not ``socketpair``: an event loop wakes itself with one."""
_MODES: Final = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr",
    "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr", "utime", "utimes", "futimesat",
    "utimensat",
)  # fmt: skip
"""What Landlock does not look at."""
_OWN_ONLY: Final = {
    "kill": (0, False), "tgkill": (0, False), "rt_sigqueueinfo": (0, False), "rt_tgsigqueueinfo": (0, False),
    "prlimit64": (0, True), "sched_setaffinity": (0, True), "sched_setscheduler": (0, True),
    "sched_setparam": (0, True), "sched_setattr": (0, True),
}  # fmt: skip
"""Allowed on the process itself: which argument names it, and whether 0 does, too."""
_LOOKED_INTO: Final = ("clone3", "fcntl", "ioctl", "prctl")
"""Denied for some arguments only."""
_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)  # 16: AF_NETLINK, to list addresses


def available() -> bool:
    """Whether a filter can be loaded here."""
    if sys.platform != "linux" or importlib.util.find_spec("seccompy") is None:
        return False
    import seccompy

    try:
        return seccompy.supported() and bool(seccompy.audit_arch())
    except seccompy.UnsupportedError:  # an architecture that it does not know
        return False


def load(sandbox: Sandbox, *, execute: bool = False, limits_fixed: bool = False) -> None:
    """Puts all threads of this process behind the filter, for good.  OSError if Linux refuses.

    ``execute``: it may turn into another program, though not start one.  ``limits_fixed``: it may look at its limits
    only.
    """
    from seccompy import Action, Filter, FilterFlag, syscall_nr

    rules = Filter(default=Action.ALLOW, flags=FilterFlag.TSYNC | FilterFlag.TSYNC_ESRCH)
    denied = [*_OTHERS, *_SYSTEM, *_USERS, *_MEMORY, *_IPC]
    if not sandbox.write:
        denied += _MODES
    if not sandbox.network:
        denied += _SOCKETS
    if not sandbox.processes:
        denied += [name for name in _PROCESSES if not (execute and name.startswith("exec"))]
        _threads_only(rules)
    for name in denied:
        _deny(rules, name)
    _own_only(rules, limits_fixed)
    _signals(rules)
    if sandbox.network:
        for family in _FAMILIES:
            rules.allow("socket", args={0: int(family)})
        _deny(rules, "socket")
    if platform.machine().lower() in ("x86_64", "amd64"):
        for number in (*_X32_OWN, *map(syscall_nr, _LOOKED_INTO)):
            rules.errno(number | _X32, errno.EPERM)
    rules.load()


def _deny(rules: Filter, name: str) -> None:
    """Denies a system call, if this architecture has it."""
    from seccompy import syscall_nr

    try:
        number = syscall_nr(name)
    except (ValueError, KeyError, LookupError):
        return
    rules.errno(number, errno.EPERM)
    if platform.machine().lower() in ("x86_64", "amd64"):
        rules.errno(number | _X32, errno.EPERM)


def _masked(index: int, mask: int, value: int) -> ArgCmp:
    from seccompy import ArgCmp, CmpOp

    return ArgCmp(index, CmpOp.MASKED_EQ, value, mask=mask)


def _threads_only(rules: Filter) -> None:
    """A new thread, but no new process.  The arguments of clone3 lie in memory, which no filter sees: whoever hears
    that there is none takes clone."""
    rules.allow("clone", args=[_masked(0, _CLONE_THREAD, _CLONE_THREAD)])
    _deny(rules, "clone")
    rules.errno("clone3", errno.ENOSYS)


def _own_only(rules: Filter, limits_fixed: bool) -> None:
    own = os.getpid()
    for name, (index, zero) in _OWN_ONLY.items():
        more = {2: 0} if limits_fixed and name == "prlimit64" else {}  # without new ones
        rules.allow(name, args={index: own, **more})
        if zero:
            rules.allow(name, args={index: 0, **more})
        _deny(rules, name)
    if limits_fixed:
        _deny(rules, "setrlimit")
    for name in ("setpriority", "ioprio_set"):  # of whom, and of what kind that is: 0 and 1 are processes
        kind = 0 if name == "setpriority" else 1
        for who in (0, own):
            rules.allow(name, args={0: kind, 1: who})
        _deny(rules, name)


def _signals(rules: Filter) -> None:
    """Signals that Linux itself would send to others on one's behalf, and the one that ends this process."""
    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, 15):  # 15: F_SETOWN_EX
        rules.errno("fcntl", errno.EPERM, args=[_masked(1, _INT, command)])
    for request in (0x8901, 0x8902, 0x5412, 0x541C):  # FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX
        rules.errno("ioctl", errno.EPERM, args=[_masked(1, _INT, request)])
    for option in (1, 4):  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE
        rules.errno("prctl", errno.EPERM, args=[_masked(0, _INT, option)])
