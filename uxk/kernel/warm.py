"""Warm start: ``warm=FILE`` among the parameters of modprobe and insmod gives an instance a state to begin with.

The kernel reads the file, compares what the checkpoint says of itself with what is here, and hands the data over as it
hands over those of an upgrade: to ``restore()``, in the extension's own placement.  It never looks into them.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from uxk.actor.actor import State
from uxk.core.checkpoint import libraries_of, unpack
from uxk.core.manifest import canonical
from uxk.core.trained import FILE_MAX_BYTES, from_file
from uxk.errors import UsageError
from uxk.ml import versions_of

if TYPE_CHECKING:
    from uxk.kernel.catalog import ExtensionClass

WARM = "warm"


def take_warm(instance: str, cls: ExtensionClass, params: dict[str, Any]) -> State | None:
    """Takes ``warm`` out of the parameters, unless the module has one of that name; the state in that file, or None.

    UsageError, naming the file and everything that does not fit: another module, another version of its state, of
    Python or of a library; an OSError's errno if it cannot be read.
    """
    if WARM not in params or WARM in cls.manifest.params.__struct_fields__:
        return None
    path = params.pop(WARM)
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UsageError(f"{instance}: warm={path!r}: expected a file that uxk train has written")
    try:
        checkpoint = from_file(_read(os.fspath(path))).checkpoint
        data = unpack(
            checkpoint, module=canonical(cls.manifest.name), state_version=cls.manifest.state_version,
            libraries=versions_of(libraries_of(checkpoint)),
        )  # fmt: skip
    except UsageError as exc:
        raise UsageError(f"{instance}: warm={os.fspath(path)}: {exc}", errno=exc.errno) from None
    except OSError as exc:
        raise UsageError(f"{instance}: warm={os.fspath(path)}: {exc.strerror}", errno=exc.errno) from None
    return State(cls.manifest.state_version, data)


def _read(path: str) -> bytes:
    """A regular file of bounded size; nothing that could make the kernel wait."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("expected a regular file")
        if status.st_size > FILE_MAX_BYTES:
            raise UsageError(f"{status.st_size} bytes, at most {FILE_MAX_BYTES}")
        return file.read(FILE_MAX_BYTES + 1)
