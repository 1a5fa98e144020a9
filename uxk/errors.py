"""The error tree, sorted by who is at fault.

Every error carries an ``errno`` so that it can cross a queue, a sysfs write or the control socket as a
number and come back as the same class of complaint.  Messages name the value, the place and what was
expected.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar


class UxkError(Exception):
    """Base of every error that uxk raises on purpose.

    ``errno`` is the class's default error number; pass ``errno=`` to be more exact.
    """

    default_errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno: int = self.default_errno if errno is None else errno

    @property
    def errno_name(self) -> str:
        """The symbolic name, for example ``"EINVAL"``."""
        return errno_name(self.errno)


def errno_name(number: int) -> str:
    """Symbolic name of an errno, or ``"E<number>"`` if the platform knows none."""
    return _errno.errorcode.get(number, f"E{number}")


# --- the caller: a user, an administrator, a program using the API -------------------------------


class UsageError(UxkError):
    """The caller asked for something that cannot be."""

    default_errno = _errno.EINVAL


class ParamError(UsageError):
    """A module parameter is unknown, of the wrong type or out of range."""


class NoSuchModule(UsageError):
    """No module, file or alias of that name."""

    default_errno = _errno.ENOENT


class InUse(UsageError):
    """The module is held by others; the message names the holders."""

    default_errno = _errno.EBUSY


class TreeError(UsageError, OSError):  # type: ignore[misc]
    """A sysfs, sysctl or char-device operation failed; ``errno`` says how, as on Linux."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        UxkError.__init__(self, message, errno=errno)

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.errno_name}]"


class ConfigError(UsageError):
    """A configuration or scenario file is wrong; the message gives file and line."""


# --- the author of a module ----------------------------------------------------------------------


class ModuleError(UxkError):
    """A module is badly written or cannot be loaded."""

    default_errno = _errno.ENOEXEC


class ManifestError(ModuleError):
    """A manifest contradicts itself or the rules."""


class DependencyError(ModuleError):
    """Missing or circular dependencies; the message names the chain."""

    default_errno = _errno.ELOOP


class ProbeError(ModuleError):
    """A module's own code failed or refused while it was being loaded; nothing of it is left."""

    default_errno = _errno.ENODEV
    refusal = False
    """Whether the module said so itself, with a UsageError; the errno is that error's then."""


class UpgradeError(ModuleError):
    """A hot upgrade or restart did not come about: what ran before runs on, and nothing is lost."""

    default_errno = _errno.ECANCELED


class ReadyTimeout(ProbeError):
    """The module did not signal readiness within its limit."""

    default_errno = _errno.ETIMEDOUT


# --- a running extension ---------------------------------------------------------------------------


class ExtensionError(UxkError):
    """A running extension did something it may not."""

    default_errno = _errno.EPERM


class CapabilityError(ExtensionError):
    """No capability, not enough rights, or one that was revoked (``ESTALE``)."""

    default_errno = _errno.EACCES


class BudgetError(ExtensionError):
    """A budget is exhausted; raised at the moment of excess."""

    default_errno = _errno.EDQUOT


class ProtocolError(ExtensionError):
    """A frame or entry that breaks the queue protocol."""

    default_errno = _errno.EPROTO


# --- the outcome of an operation --------------------------------------------------------------------


class RequestError(UxkError):
    """A request came back with an error status."""


class RingFull(UxkError):
    """No room in a ring: back-pressure for the submitter."""

    default_errno = _errno.EAGAIN


class Stalled(UxkError):
    """Virtual time cannot advance: nothing is runnable, nothing is scheduled, and somebody waits."""

    default_errno = _errno.EDEADLK


# --- uxk itself ---------------------------------------------------------------------------------------


class KernelBug(UxkError):
    """An invariant of the kernel is broken: report it."""

    default_errno = _errno.EFAULT
