"""The ``uxk`` command.

Exit codes: 0 good, 1 the operation failed, 2 wrong usage; ``run`` adds its own.  A verb's file is imported only when
that verb is used, or for help; none imports the kernel before it has to.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from uxk.cli.common import FAILED, INTERRUPTED, USAGE, UsageExit, complain, error_text, only_error
from uxk.errors import UxkError

VERB_FILES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("uxk.cli.boot", ("boot",)),
    ("uxk.cli.modules", ("lsmod", "modprobe", "insmod", "rmmod")),
    ("uxk.cli.upgrade", ("upgrade", "restart")),
    ("uxk.cli.supervise", ("supervise",)),
    ("uxk.cli.modinfo", ("modinfo", "depmod")),
    ("uxk.cli.dmesg", ("dmesg",)),
    ("uxk.cli.metrics", ("metrics",)),
    ("uxk.cli.tree", ("cat", "echo", "ls", "tree")),
    ("uxk.cli.mount", ("mount", "umount")),
    ("uxk.cli.fault", ("fault",)),
    ("uxk.cli.serve", ("serve",)),
    ("uxk.cli.iostat", ("iostat",)),
    ("uxk.cli.blktrace", ("blktrace",)),
    ("uxk.cli.run", ("run",)),
    ("uxk.cli.explore", ("explore",)),
    ("uxk.cli.report", ("report",)),
    ("uxk.cli.diff", ("diff",)),
    ("uxk.cli.replay", ("replay",)),
    ("uxk.cli.record", ("record",)),
    ("uxk.cli.dataset", ("dataset",)),
    ("uxk.cli.train", ("train",)),
    ("uxk.cli.new", ("new",)),
    ("uxk.cli.check", ("check",)),
    ("uxk.cli.bpf", ("bpf",)),
    ("uxk.cli.export", ("export",)),
    ("uxk.cli.compile", ("compile",)),
)
"""Each file has a function ``register(subparsers)``, which adds its verbs with :func:`uxk.cli.common.add_verb`."""

_EPILOG: Final = """\
A running kernel: start it with `uxk boot --socket PATH` in one terminal; in another, `uxk -k PATH lsmod` or
`export UXK_SOCKET=PATH`. Without one, lsmod, modinfo and depmod tell what could be loaded, and modprobe and insmod
try a module out in a kernel of their own.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows trees, too
    verb = ""
    try:
        words = hoist(sys.argv[1:] if argv is None else list(argv))
        verb = verb_of(words)
        parser = build_parser(verb)
        args = parser.parse_args(words)
        if "handler" not in args:
            parser.print_help(sys.stderr)
            return USAGE
        if words[0].startswith(("-k", "--kernel")) and not getattr(args, "takes_kernel", True):
            raise UsageExit("has no use for the socket of a running kernel (-k)")
        code = int(args.handler(args))
        sys.stdout.flush()
    except SystemExit as exc:  # argparse: 0 after help, 2 after a mistake
        return exc.code if isinstance(exc.code, int) else USAGE
    except BaseException as exc:
        return _exit_code(verb, exc)
    return code


def build_parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser, with the verbs of the file that has ``verb``; with all verbs if none has."""
    parser = argparse.ArgumentParser(
        prog="uxk", description="A laboratory kernel in user space.", epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument(
        "-k", "--kernel", metavar="SOCKET", default=os.environ.get("UXK_SOCKET"),
        help="a running kernel's socket; before or after the verb (default: $UXK_SOCKET)",
    )  # fmt: skip
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    wanted = [file for file, verbs in VERB_FILES if verb in verbs] or [file for file, _ in VERB_FILES]
    for file in wanted:
        importlib.import_module(file).register(subparsers)
    return parser


def hoist(words: list[str]) -> list[str]:
    """Puts ``-k SOCKET`` first and ``--json`` right behind the verb, so that both may stand anywhere before ``--``.

    argparse gives up on ``modprobe NAME -k SOCKET a=1``: an option may not part a verb's words.
    """
    kernel: list[str] = []
    others: list[str] = []
    json: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            others += [word, *rest]
        elif word in ("-k", "--kernel"):
            kernel += [word, *([value] if (value := next(rest, None)) is not None else [])]
        elif word.startswith("--kernel=") or (word.startswith("-k") and not word.startswith("--")):
            kernel.append(word)
        elif word == "--json":
            json = [word]
        else:
            others.append(word)
    split = next((i for i, word in enumerate(others, 1) if not word.startswith("-")), len(others))
    return [*kernel, *others[:split], *json, *others[split:]]


def verb_of(words: Sequence[str]) -> str:
    """The verb of a hoisted command line, or ``""``."""
    rest = iter(words)
    for word in rest:
        if word in ("-k", "--kernel"):
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


class _Version(argparse.Action):
    """Prints the version; asking for it imports nothing else."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from uxk import __version__

        print(f"uxk {__version__}")
        parser.exit()


def _exit_code(verb: str, exc: BaseException) -> int:
    """Tells what went wrong and returns the exit code; a defect of uxk itself is raised with its traceback."""
    if isinstance(exc, BaseExceptionGroup):
        exc = only_error(exc)
    match exc:
        case UsageExit():
            complain(verb, str(exc))
            return USAGE
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED
        case UxkError() | OSError():
            complain(verb, error_text(exc))
            return FAILED
    raise exc
