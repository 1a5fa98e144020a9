"""What the verbs share: their registration, the kernel to talk to, printing."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from uxk.errors import ParamError, UsageError, UxkError

if TYPE_CHECKING:
    from uxk.bridges.control_client import ControlClient

T = TypeVar("T")
Handler: TypeAlias = Callable[[argparse.Namespace], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

GOOD, FAILED, USAGE = range(3)
"""Exit codes; a verb may have further ones of its own."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it: 128 and the signal's number."""


class UsageExit(Exception):
    """The command line cannot be: exit code 2, with a message that explains what would do."""


def add_verb(
    subparsers: Subparsers, name: str, handler: Handler, *, help: str, json: bool = False, kernel: bool = False,
    epilog: str | None = None,
) -> argparse.ArgumentParser:  # fmt: skip
    """Adds a verb; ``handler(args)`` returns the exit code and may raise UxkError, OSError or UsageExit.

    With ``kernel`` the verb takes ``-k``: ``args.kernel`` is the socket of a running kernel or None.  With ``json``
    there is ``args.json``.  :func:`uxk.cli.main` sees to it that both may stand anywhere on the command line.
    """
    parser = subparsers.add_parser(
        name, help=help, description=help[:1].upper() + help[1:] + ".", epilog=epilog, allow_abbrev=False
    )
    parser.set_defaults(handler=handler, takes_kernel=kernel)
    if kernel:
        text = "a running kernel's socket (default: $UXK_SOCKET)"
        parser.add_argument("-k", "--kernel", metavar="SOCKET", default=argparse.SUPPRESS, help=text)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


# --- a running kernel -----------------------------------------------------------------------------


def with_kernel(args: argparse.Namespace, operate: Callable[[ControlClient], Awaitable[T]]) -> T:
    """Connects to the kernel that the command line names, and runs ``operate`` on it."""
    import trio

    from uxk.bridges.control_client import ControlClient

    path = socket_of(args)

    async def session() -> T:
        async with ControlClient(path) as kernel:
            return await operate(kernel)

    return trio.run(session)


def socket_of(args: argparse.Namespace) -> str:
    """The socket of the running kernel; UsageExit, saying how to get one, if none is named."""
    if not args.kernel:
        raise UsageExit(
            "needs a running kernel: start one with `uxk boot --socket PATH` in another terminal, "
            "then give `-k PATH` or set UXK_SOCKET=PATH"
        )
    return str(args.kernel)


async def disk_folder(kernel: ControlClient, name: str) -> str:
    """``/sys/block/NAME``.  UsageError (ENODEV), with what there is instead, if the running kernel has no such disk."""
    tops = {entry.name for entry in await kernel.listdir("/sys")}
    known = [entry.name for entry in await kernel.listdir("/sys/block")] if "block" in tops else []
    if name not in known:
        raise UsageError(f"no disk {name!r}{instead(name, known)}", errno=errno.ENODEV)
    return f"/sys/block/{name}"


def instead(name: str, known: Iterable[str]) -> str:
    """What may have been meant by ``name``, such as nvme0n1 by nvme, and all that there is."""
    from uxk.core.suggest import did_you_mean

    names = sorted(known)
    longer = next((each for each in names if name and each.startswith(name) and each != name), "")
    hint = f" (did you mean {longer!r}?)" if longer else did_you_mean(name, names)
    return f"{hint}; there are: {', '.join(names) or 'none'}"


# --- arguments ------------------------------------------------------------------------------------


def param_texts(words: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a dict, as insmod and modprobe take parameters.  Raises UsageExit."""
    params: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageExit(f"{word!r}: expected a parameter as NAME=VALUE")
        if name in params:
            raise ParamError(f"parameter {name} is given twice")
        params[name] = value
    return params


# --- printing -------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """One line of JSON on stdout; structs become objects."""
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def clean(text: object) -> str:
    """Text for a terminal: nothing in it acts, or breaks the line."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in shown)


def note(text: str) -> None:
    """A remark on stderr, where it does not get in the way of what is printed."""
    print(f"# {text}", file=sys.stderr, flush=True)


def complain(verb: str, text: str) -> None:
    """An error on stderr."""
    print(f"uxk: {verb}: {text}" if verb else f"uxk: {text}", file=sys.stderr, flush=True)


def error_text(exc: UxkError | OSError) -> str:
    """Message and errno name, once."""
    if isinstance(exc, UxkError):
        return f"{clean(exc.args[0] if exc.args else type(exc).__name__)} [{exc.errno_name}]"
    name = errno.errorcode.get(exc.errno or 0)
    text = exc.strerror or str(exc)  # str() would put the number in front
    if exc.strerror and exc.filename is not None:
        text = f"{os.fsdecode(exc.filename) if isinstance(exc.filename, bytes) else exc.filename}: {text}"
    return clean(text) + (f" [{name}]" if name else "")


def only_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error in a group, however deep Trio's nurseries have wrapped it; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
