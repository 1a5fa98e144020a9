"""What an extension's objects take: for figures, from outside, at any moment between its turns."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np

from uxk.context import Context

_SHARED: Final = (ModuleType, type, FunctionType, BuiltinFunctionType, CodeType, FrameType, Context)
"""Not the extension's own: code, and the way to the kernel."""


def instances_of(cls: type[Any]) -> list[Any]:
    """The living objects of exactly this class."""
    return [each for each in gc.get_objects() if type(each) is cls]


def held_bytes(root: object) -> int:
    """Bytes of everything that can be reached from an object, itself included, each thing once.

    Arrays count with the memory that they own or look into.  Code, classes and contexts do not count, and neither
    does what C libraries keep to themselves.
    """
    seen: set[int] = set()
    total = 0
    rest = [root]
    while rest:
        each = rest.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            total += each.nbytes if each.base is None else 0
            rest += [] if each.base is None else [each.base]
            continue
        total += sys.getsizeof(each)
        rest += [each.__self__] if isinstance(each, MethodType) else gc.get_referents(each)
    return total
