"""``jit``: numba's compiler if the extra ``fast`` is installed, else the plain Python function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

try:
    import numba  # type: ignore[import-untyped,unused-ignore]
except ImportError:  # the reference engine computes the same, slower
    numba = None  # type: ignore[assignment,unused-ignore]

F = TypeVar("F", bound=Callable[..., Any])

_njit: Any = None if numba is None else numba.njit


def _drop_stale() -> None:
    """Deletes machine code that was made from other sources: numba looks at a function's own file only."""
    here = Path(__file__).parent
    sources = sorted([*here.glob("*.py"), here.parent / "codes.py"])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = here / "__pycache__" / "sources.sha256"
    try:
        if stamp.is_file() and stamp.read_text() == digest:
            return
        for old in (*stamp.parent.glob("*.nbi"), *stamp.parent.glob("*.nbc")):
            old.unlink(missing_ok=True)
        stamp.write_text(digest)
    except OSError:  # a read-only package: numba keeps its code elsewhere, by the time of installation
        return


if numba is not None:
    _drop_stale()

COMPILED: Final = numba is not None
"""Whether the functions of this package run as machine code."""


def jit(function: F) -> F:
    """Compiles a function of integers and integer arrays; the machine code is cached beside the source.

    It makes no arrays, and counts no references to those it gets: counting them took half of the time.
    """
    if numba is None:
        return function
    return cast(F, _compiled(function))


def inline(function: F) -> F:
    """As :func:`jit`, and part of its callers' code: passing arrays costs more than small functions do."""
    if numba is None:
        return function
    return cast(F, _compiled(function, forceinline=True))


def _compiled(function: Callable[..., Any], **options: bool) -> Any:
    try:
        return _njit(cache=True, error_model="numpy", _nrt=False, **options)(function)
    except RuntimeError:  # nowhere to write, as in a host process behind its sandbox: what is there can be read
        dispatcher = _njit(error_model="numpy", _nrt=False, **options)(function)
        kept = _read_only_cache()
        if kept is not None:
            with suppress(RuntimeError):  # it has no file of its own
                dispatcher._cache = kept(function)
        return dispatcher


@cache
def _read_only_cache() -> Any:
    """numba's cache beside the source without its test whether it can write there; None if this numba has another."""
    from numba.core import caching  # type: ignore[import-untyped,unused-ignore]

    beside: Any = getattr(caching, "InTreeCacheLocator", None) or getattr(caching, "_InTreeCacheLocator", None)
    if beside is None:
        return None
    locator = type("Locator", (beside,), {"ensure_cache_path": lambda self: None})
    impl = type("Impl", (caching.CompileResultCacheImpl,), {"_locator_classes": [locator]})
    body = {"_impl_class": impl, "save_overload": lambda self, signature, data: None}
    return type("ReadOnlyCache", (caching.FunctionCache,), body)


def _make_prefetch() -> Any:
    """``prefetch(array, flat_index)``: asks the processor to bring an element near; without numba nothing."""
    if numba is None:
        return lambda array, index: None
    from numba.core import config  # type: ignore[import-untyped,unused-ignore]

    if getattr(config, "DISABLE_JIT", False):
        return lambda array, index: None
    from llvmlite import ir  # type: ignore[import-untyped,unused-ignore]
    from numba.core import types  # type: ignore[import-untyped,unused-ignore]
    from numba.extending import intrinsic  # type: ignore[import-untyped,unused-ignore]

    @intrinsic
    def prefetch(typing: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.gep(values.data, [arguments[1]])
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            name = "llvm.prefetch.p0"
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(function, [builder.bitcast(place, byte), word(1), word(3), word(1)])
            return context.get_dummy_value()

        return types.none(array, types.int64), generate

    return prefetch


prefetch: Final = _make_prefetch()


PLAIN: Final[dict[int, Callable[[Any], int]]] = {}
"""Functions of a row by what stands for their address, where nothing is compiled."""


def is_native() -> bool:
    """Whether :func:`call_row` takes addresses of machine code; else those in PLAIN."""
    if numba is None:
        return False
    from numba.core import config  # type: ignore[import-untyped,unused-ignore]

    return not getattr(config, "DISABLE_JIT", False)


def _make_call() -> Any:
    """``call_row(address, words, index)``: what ``int64 f(int64 *row)`` says, with ``row`` inside an array."""
    if not is_native():
        return lambda address, words, index: PLAIN[int(address)](words[index:])
    from llvmlite import ir  # type: ignore[import-untyped,unused-ignore]
    from numba.core import types  # type: ignore[import-untyped,unused-ignore]
    from numba.extending import intrinsic  # type: ignore[import-untyped,unused-ignore]

    @intrinsic
    def call_row(typing: Any, address: Any, words: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = context.make_array(signature.args[1])(context, builder, arguments[1])
            row = builder.gep(values.data, [arguments[2]])
            word = ir.IntType(64)
            kind = ir.FunctionType(word, [word.as_pointer()]).as_pointer()
            return builder.call(builder.inttoptr(arguments[0], kind), [row])

        return types.int64(types.int64, words, types.int64), generate

    return call_row


call_row: Final = _make_call()
