"""What faces share: errors of one class, text as bytes, numbers for paths."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from uxk import limits
from uxk.core.kobject import brief, split_path, tree_error
from uxk.errors import TreeError, UxkError

_ID_BYTES: Final = 8


@contextmanager
def tree_errors(path: str) -> Iterator[None]:
    """What the kernel or the system raises, as the one class of error that a face raises."""
    try:
        yield
    except TreeError:
        raise
    except UxkError as exc:
        text = str(exc.args[0]) if exc.args else type(exc).__name__
        raise TreeError(text if path in text else f"{brief(path)}: {text}", errno=exc.errno or errno.EIO) from exc
    except OSError as exc:
        raise TreeError(f"{brief(path)}: {exc.strerror or exc}", errno=exc.errno or errno.EIO) from exc


def text_bytes(text: str) -> bytes:
    """An attribute's text as ``cat`` shows it."""
    return f"{text}\n".encode() if text else b""


def path_id(path: str) -> int:
    """A number for a canonical path: positive, below 2**63, the same in every process."""
    digest = hashlib.blake2b(path.encode(), digest_size=_ID_BYTES).digest()
    return int.from_bytes(digest, "big") >> 1 or 1


def check_mode(path: str, mode: str) -> None:
    """Raises ``TreeError`` (EINVAL) unless ``mode`` is one that a file can be opened for."""
    if mode not in ("r", "w", "rw"):
        raise tree_error(path, f"opened for {mode[:16]!r}, expected 'r', 'w' or 'rw'", errno.EINVAL)


def check_value(path: str, data: bytes) -> None:
    """Raises ``TreeError`` for a bad path, and for more bytes than an attribute takes (E2BIG)."""
    split_path(path)
    if len(data) > limits.SHOW_MAX_BYTES:
        raise tree_error(path, f"value of {len(data)} bytes, at most {limits.SHOW_MAX_BYTES}", errno.E2BIG)
