"""The one place that knows where pyfuse3 comes from: an extra, which needs libfuse3 to be built."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from uxk.errors import UsageError

DEVICE: Final = Path("/dev/fuse")


def pyfuse3() -> Any:
    """The library, imported when it is first asked for.  UsageError (ENOPKG), with what to do, without it."""
    try:
        return import_module("pyfuse3")
    except ImportError as exc:
        raise UsageError(
            f"mounting needs pyfuse3 ({exc}): install fuse3, libfuse3-dev and pkg-config, then pip install 'uxk[fuse]'",
            errno=errno.ENOPKG,
        ) from exc


def missing() -> str:
    """Why nothing can be mounted on this machine, or ``""``."""
    if not DEVICE.exists():
        return f"no {DEVICE}"
    try:
        pyfuse3()
    except UsageError as exc:
        return str(exc)
    return ""
