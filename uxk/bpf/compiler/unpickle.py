"""Reads pickles of models that may name nothing but what such models consist of.

A pickle is code: it may call whatever it can name.  Here it can name classes of river (without those that fetch data)
and their methods, uxk's guard and nets, arrays, and plain containers.  That keeps out what a stranger would put into a
file; who wants more says that the file is trusted.  (Python's documentation of pickle: restricting globals.)
"""

from __future__ import annotations

import io
import pickle
from types import FunctionType, MethodType
from typing import Any, Final

from uxk.bpf.compiler.errors import CompileError

_PLAIN: Final = frozenset({
    "_codecs.encode", "builtins.bool", "builtins.bytearray", "builtins.bytes", "builtins.complex", "builtins.dict",
    "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list", "builtins.long", "builtins.object",
    "builtins.set",
    "builtins.str", "builtins.tuple", "collections.Counter", "collections.OrderedDict", "collections.defaultdict",
    "collections.deque", "copy.deepcopy", "copyreg._reconstructor", "functools.partial", "numpy.dtype",
    "numpy.ndarray", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "random.Random", "statistics.NormalDist", "uxk.bpf.compiler.nets.Net",
})  # fmt: skip
_MODULES: Final = ("river.", "uxk.ml.")
_NOT: Final = ("river.datasets", "river.stream")


def _ours(found: object) -> bool:
    return f"{getattr(found, '__module__', '')}.".startswith(_MODULES)


def _method(owner: Any, name: str) -> Any:
    """What stands in for ``getattr``, by which a pickle says that something is a method."""
    found = getattr(owner, name)
    if isinstance(found, (FunctionType, MethodType)) and _ours(found):
        return found
    raise CompileError(f"names {name!r} of a {type(owner).__name__}, of which no model of river's consists")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if known == "builtins.getattr":
            return _method
        if known in _PLAIN:
            return super().find_class(module, name)
        if f"{module}.".startswith(_MODULES) and not module.startswith(_NOT):
            found = super().find_class(module, name)
            if _ours(found) and (isinstance(found, type) or (isinstance(found, FunctionType) and "." in name)):
                return found
        raise CompileError(f"names {module}.{name}, of which no model of river's consists")


def unpickled(data: bytes, *, trusted: bool = False) -> Any:
    """What a pickle holds.  ``CompileError`` for what it may not name, unless it is ``trusted``; else as pickle."""
    return pickle.loads(data) if trusted else _Reader(io.BytesIO(data)).load()
