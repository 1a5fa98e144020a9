"""What the documents show happens, and what they list exists.

Each document is a session in an empty folder, from top to bottom:

* a block with ``file=NAME`` behind its language is written to that file;
* a ``console`` block runs in one shell: after each ``$ command`` stands what it prints (``...`` stands for anything);
  ``console background`` starts its command, waits for the output shown, and lets it run on (another terminal);
* the ``python`` blocks without a file run in one interpreter, at the end.

``<!-- needs: NAMES -->`` names programs of others; where one is missing, the session is skipped.

Tables between ``<!-- table: NAME -->`` and ``<!-- /table -->`` are made from the code.  ``UXK_UPDATE_DOCS=1`` writes
tables and outputs anew; read the difference before you believe it.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import msgspec
import msgspec.inspect as mi
import pytest

import uxk
from uxk import cli, context, errors, limits, ml, submission
from uxk.core import action, dataset, mlmodel, mode
from uxk.core.account import COUNTERS, GAUGES
from uxk.core.lifecycle import TRANSITIONS
from uxk.core.manifest import DEFAULT_RIGHTS
from uxk.core.tree import Attribute
from uxk.faults import model as faults
from uxk.kernel import actions, chardev, devices, kernel, module, ports, proxyviews, views
from uxk.kernel.proxy import MLModelProxy
from uxk.scenario import model, results
from uxk.scenario.exploring import Exploration
from uxk.scenario.invariants import INVARIANTS
from uxk.scenario.lfs.study import StudyParams, WorkloadSpec
from uxk.subsystems.lfs.hint import GcHint
from uxk.testing import all_checks
from uxk.uapi import entries, manifest
from uxk.uapi import ml as records

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
UPDATE = bool(os.environ.get("UXK_UPDATE_DOCS"))
LIMIT_S = 300
"""A session that hangs is killed after this time; compiling the batch kernel for the first time takes a minute."""
SENTINEL = "--uxk-docs-sentinel--"
MAKE_RUNS = ("make run", "make help")
"""The other targets install or test everything: they are looked up (``make -n``), not run."""

documents = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


# --- reading ------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: language, what stands behind it, text, line of the text, and where the text is."""

    language: str
    info: str
    text: str
    line: int
    span: tuple[int, int]

    @property
    def file(self) -> str:
        """The file that it is the content of, or ``""``."""
        found = re.search(r"\bfile=(\S+)", self.info)
        return found[1] if found else ""


class Step(NamedTuple):
    """A command line of a console block and the output shown for it."""

    command: str
    shown: str
    prompt: str
    """The command as it stands in the document, prompt and continuation lines included."""


FENCE = re.compile(r"^```(\w*)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[Block]:
    """Every fenced block of a document."""
    found = FENCE.finditer(text)
    return [Block(m[1], m[2].strip(), m[3], text.count("\n", 0, m.start(3)) + 1, m.span(3)) for m in found]


def steps(block: Block) -> list[Step]:
    """The commands of a console block."""
    parts = re.split(r"(?m)^\$ ((?:.*\\\n)*.*\n)", block.text)
    assert not parts[0].strip(), f"line {block.line}: output without a command"
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [Step(re.sub(r"\\\n\s*", "", command).strip(), shown, f"$ {command}") for command, shown in pairs]


def needs(text: str) -> list[str]:
    """Programs of others without which a document's session cannot run: ``<!-- needs: NAMES -->``."""
    return " ".join(re.findall(r"<!-- needs: (.*) -->", text)).split()


def prose(text: str) -> str:
    """A document without its blocks."""
    return FENCE.sub("", text)


def matches(shown: str, printed: str) -> bool:
    """Whether what was printed is what the document shows; ``...`` stands for anything."""
    return re.fullmatch(re.escape(tidy(shown)).replace(r"\.\.\.", ".*?"), tidy(printed), re.DOTALL) is not None


def tidy(text: str) -> str:
    """Without blanks at the ends of lines and of the text."""
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n")).strip("\n")


# --- sessions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def binaries() -> Iterator[Path]:
    """A folder with ``python`` and ``uxk``: an environment of its own, so that a document may install something."""
    with tempfile.TemporaryDirectory(prefix="uxk-docs-") as name:
        folder = Path(name, "venv")
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        site = next(folder.glob("lib/python*/site-packages"))
        outer = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        lines = [f"import site; site.addsitedir({folder_!r})\n" for folder_ in outer]
        site.joinpath("outer.pth").write_text("".join(lines), "utf-8")
        script = folder / "bin" / "uxk"
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m uxk "$@"\n', "utf-8")
        script.chmod(0o755)
        yield folder / "bin"


class Session:
    """One document's folder and shell."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        dropped = ("PYTHONPATH", "UXK_", "XDG_RUNTIME_DIR", "MAKE", "MFLAGS", "PYTEST_", "VIRTUAL_ENV")
        self._env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "100", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        self._running: list[subprocess.Popen[str]] = []
        self._shell = self._start(["bash", "--norc", "-s"])
        prefix = shlex.quote(sys.prefix)
        stamps = " ".join(f"-o {prefix}/.{extra}" for extra in ("venv", "run", "test", "lint", "bench"))
        self._say(f"make() {{ command make --no-print-directory -C {shlex.quote(str(ROOT))} VENV={prefix} {stamps} "
                  '"$@"; }')  # fmt: skip
        self._say('pip() { python -m pip "$1" -q --disable-pip-version-check --root-user-action=ignore '
                  '--no-deps --no-build-isolation "${@:2}"; }')  # fmt: skip

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, cwd=self.folder, env=self._env, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._running.append(process)
        return process

    def _say(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

    def run(self, command: str) -> tuple[str, int]:
        """What a command prints on both streams, and its exit code."""
        self._say(f"{{ {command}\n}} </dev/null 2>&1; printf '\\n{SENTINEL} %d\\n' $?")
        lines: list[str] = []
        for line in self._lines(self._shell):
            if line.startswith(SENTINEL):
                return self.normal("".join(lines)), int(line.split()[1])
            lines.append(line)
        raise AssertionError(f"the shell ended during {command!r}: {''.join(lines)}")

    def run_on(self, command: str, shown: str) -> str:
        """Starts a command that goes on; returns what it prints, as soon as that is what is shown."""
        printed = ""
        for line in self._lines(self._start(["bash", "-c", f"exec {command}"])):
            printed += line
            if matches(shown, self.normal(printed)) or (UPDATE and not shown.strip()):
                break
        return self.normal(printed)

    @staticmethod
    def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
        killer = threading.Timer(LIMIT_S, process.kill)
        killer.start()
        try:
            stream: IO[str] | None = process.stdout
            assert stream is not None
            yield from iter(stream.readline, "")
        finally:
            killer.cancel()

    def normal(self, text: str) -> str:
        """Output with what differs from machine to machine taken out."""
        text = text.replace(f"{self.folder}/", ".../").replace(str(self.folder), "...")
        text = text.replace(sys.prefix, ".venv").replace(f"{ROOT}/", "")
        return re.sub(r"(?m)^host time .*$", "host time ...", text)

    def python(self, found: Iterable[Block], name: str) -> tuple[str, int]:
        """Runs blocks in one interpreter; line numbers in tracebacks are the document's."""
        program = self.folder / "_blocks.py"
        sources = [("\n" * (block.line - 1) + block.text, name) for block in found]
        program.write_text(
            f"names = {{'__name__': '__main__'}}\nfor source, name in {sources!r}:\n"
            "    exec(compile(source, name, 'exec'), names)\n", "utf-8",
        )  # fmt: skip
        return self.run("python _blocks.py")

    def close(self) -> None:
        """Ends whatever was started."""
        for process in reversed(self._running):
            process.terminate()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def perform(session: Session, block: Block) -> str:
    """Runs a console block and returns its text as it ought to be."""
    text = ""
    for step in steps(block):
        if step.command.startswith("make ") and step.command not in MAKE_RUNS:
            printed, code = step.shown, session.run(f"{step.command} -n")[1]
        elif "background" in block.info:
            printed, code = session.run_on(step.command, step.shown), 0
        else:
            printed, code = session.run(step.command)
        assert code == 0, f"line {block.line}: {step.command}: exit code {code}\n{printed}"
        good = matches(step.shown, printed)
        where = f"line {block.line}: $ {step.command}"
        assert good or UPDATE, f"{where}\n{printed}\n--- but the document shows\n{step.shown}"
        output = step.shown if good else tidy(printed) + "\n"
        text += step.prompt + (output if output.strip() else "")
    return text


@documents
def test_document_is_true(path: Path, binaries: Path) -> None:
    text = path.read_text("utf-8")
    if missing := [name for name in needs(text) if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    found = blocks(text)
    folder = Path(tempfile.mkdtemp(prefix="uxk-"))  # short: it holds sockets
    session = Session(folder, binaries)
    updated: list[tuple[Block, str]] = []
    try:
        for block in found:
            if block.file:
                target = folder / block.file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text, "utf-8")
            elif block.language == "console":
                updated.append((block, perform(session, block)))
        loose = [block for block in found if block.language == "python" and not block.file]
        if loose:
            printed, code = session.python(loose, path.name)
            assert code == 0, printed
    finally:
        session.close()
        shutil.rmtree(folder)
    if UPDATE:
        for block, new in reversed(updated):
            text = text[: block.span[0]] + new + text[block.span[1] :]
        path.write_text(text, "utf-8")


# --- tables -------------------------------------------------------------------------------------------------


def plain(doc: str | None) -> str:
    """The first paragraph of a docstring, as Markdown on one line."""
    text = " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", r"\|")


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def code(text: object) -> str:
    """A cell in fixed width."""
    shown = str(text).replace("|", r"\|")
    return f"`{shown}`" if shown else ""


def table(head: str, rows: Iterable[str]) -> str:
    """A Markdown table."""
    names = head.split(" / ")
    return "\n".join([row(*names), row(*["---"] * len(names)), *rows])


def class_source(cls: type) -> tuple[ast.ClassDef, list[str]]:
    """A class as written."""
    text = textwrap.dedent(inspect.getsource(cls))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.ClassDef)
    return node, text.splitlines()


def field_rows(cls: type[msgspec.Struct]) -> Iterator[str]:
    """Fields of a struct: name, type, default, and the docstring behind it."""
    defaults = {field.name: field for field in msgspec.structs.fields(cls)}
    body = class_source(cls)[0].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in defaults:
            value = defaults[node.target.id].default
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            doc = after.value.value if is_text else ""  # type: ignore[union-attr]
            default = (
                ""
                if value is msgspec.NODEFAULT
                else type(value).__name__ + "()"
                if (isinstance(value, msgspec.Struct))
                else value.__name__
                if isinstance(value, type)
                else repr(value)
            )
            yield row(
                code(node.target.id), type_text(cls, node.target.id, node.annotation), code(default), plain(str(doc))
            )


def type_text(cls: type, name: str, annotation: ast.expr) -> str:
    """A type in words, as far as msgspec knows it: with its bounds, or the words that it admits; else as written."""
    (info,) = (field.type for field in mi.type_info(cls).fields if field.name == name)  # type: ignore[attr-defined]
    return in_words(info) or code(ast.unparse(annotation))


def in_words(info: mi.Type) -> str:
    """``int, 1 to 65536, bytes``; ``""`` for a type that has no words."""
    match info:
        case mi.Metadata():
            unit = str((info.extra or {}).get("unit", ""))
            return in_words(info.type) + (f", {unit}" if unit else "")
        case mi.IntType():
            high = "" if info.le in (None, limits.I64_MAX) else f"{info.le}"
            low = "" if info.ge is None else f"{info.ge}"
            bounds = (
                f"{low} to {high}" if low and high else f"{low} or more" if low else f"up to {high}" if high else ""
            )
            return "int" + (f", {bounds}" if bounds else "")
        case mi.LiteralType():
            return ", ".join(map(code, info.values))
        case mi.UnionType():
            words = [in_words(each) for each in info.types]
            return " or ".join(dict.fromkeys(words)) if all(words) else ""
        case mi.VarTupleType():
            inner = in_words(info.item_type)
            return f"tuple of {inner}" if inner else ""
        case mi.DictType():
            return "table"
        case mi.StructType():
            return code(info.cls.__name__)
        case mi.StrType() | mi.BoolType() | mi.FloatType() | mi.NoneType():
            return type(info).__name__.removesuffix("Type").lower()
    return ""


def fields_table(cls: type[msgspec.Struct]) -> str:
    """Fields of one struct."""
    return table("field / type / default / meaning", field_rows(cls))


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """``name(a, *, b=1)``, without types."""
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    for argument in filter(None, (arguments.vararg, arguments.kwarg)):
        argument.annotation = None
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    arguments.posonlyargs = [argument for argument in arguments.posonlyargs if argument.arg != "self"]
    text = ast.unparse(arguments).removeprefix("/, ")
    return f"{node.name}({text})"


def method_rows(cls: type, skipped: tuple[str, ...] = ()) -> Iterator[str]:
    """Public methods and properties, under the headings that the source has (``# --- time ---``)."""
    node, lines = class_source(cls)
    heading = last = ""
    for item in node.body:
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for line in lines[: item.lineno]:
            if found := re.match(r"    # --- (.*) ---", line):
                heading = found[1]
        if item.name.startswith("_") or heading in skipped:
            continue
        kinds = {ast.unparse(decorator) for decorator in item.decorator_list}
        text = item.name if "property" in kinds else signature(item)
        verb = "await " if isinstance(item, ast.AsyncFunctionDef) and "asynccontextmanager" not in kinds else ""
        if ast.unparse(item.returns or ast.Constant(None)).startswith("AsyncIterator"):
            verb = "async with " if kinds else "async for "
        yield row("" if heading == last else heading, code(verb + text), plain(ast.get_docstring(item)))
        last = heading


def methods_table(cls: type, skipped: tuple[str, ...] = ()) -> str:
    """Methods of one class; without the column of headings where there are none."""
    rows = list(method_rows(cls, skipped))
    if all(line.startswith("|  |") for line in rows):
        return table("method / what it does", [line.removeprefix("|  ") for line in rows])
    return table("about / method / what it does", rows)


def verbs_table() -> str:
    """Every verb of the command line with its arguments."""
    parser = cli.build_parser()
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in found._choices_actions}
    rows = []
    for name, verb in found.choices.items():
        words = [argument_text(action) for action in verb._actions if action.dest != "help"]
        rows.append(row(code(f"uxk {name}"), " ".join(code(word) for word in words), plain(helps[name])))
    return table("verb / arguments / what it does", rows)


def argument_text(action: argparse.Action) -> str:
    """``-k, --kernel SOCKET``."""
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    value = " ".join(value) if isinstance(value, tuple) else value
    many = "..." if action.nargs in ("+", "*") else ""
    names = ", ".join(action.option_strings)
    return f"{names} {value}{many}".strip() if names else f"{value or action.dest}{many}"


def entries_table() -> str:
    """The protocol's entries in the order of their tags."""
    known = [cls for cls in vars(entries).values() if isinstance(cls, type) and issubclass(cls, entries.Entry)]
    tagged = sorted((cls for cls in known if cls is not entries.Entry), key=lambda cls: tag_of(cls))
    direction = {1: "down", 2: "down", 3: "down", 4: "down", 16: "answer, both ways", 17: "answer to the kernel"}
    return table("tag / entry / direction / fields / meaning", (
        row(str(tag_of(cls)), code(cls.__name__), direction.get(tag_of(cls), "up"),
            code(", ".join(cls.__struct_fields__)), plain(cls.__doc__))
        for cls in tagged
    ))  # fmt: skip


def tag_of(cls: type[msgspec.Struct]) -> int:
    """The integer that stands first in an encoded entry."""
    tag = cls.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def limits_table() -> str:
    """Bounds that are exported, with the text behind each."""
    body = ast.parse(inspect.getsource(limits)).body
    rows = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            rows.append(row(code(node.target.id), f"{getattr(limits, node.target.id):,}", plain(str(doc))))
    return table("bound / value / reason", rows)


def errors_table() -> str:
    """The error tree."""
    found = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, uxk.UxkError)]
    return table("error / is a / errno / when", (
        row(code(cls.__name__), code(cls.__bases__[0].__name__), errors.errno_name(cls.default_errno),
            plain(cls.__doc__))
        for cls in found
    ))  # fmt: skip


def sysfs_table() -> str:
    """Directories and the attributes that the kernel puts there."""
    places = {
        "/sys/kernel": views.KERNEL, "/sys/module/NAME": views.MODULE, "/sys/module/NAME/statistics": views.STATISTICS,
        "/sys/devices/virtual/CLASS/DEVICE": devices._DEVICE_ATTRIBUTES,
        "/sys/kernel/ml/SUBSYSTEM/MODEL": proxyviews.MODEL, ".../MODEL/rejects": proxyviews.REJECTS,
        ".../MODEL/sites/SITE": proxyviews.SITE, ".../MODEL/datasets/DATASET": proxyviews.DATASET,
        "/sys/kernel/actions": actions._ATTRIBUTES,
    }  # fmt: skip
    return table("directory / attributes", (
        row(code(path), ", ".join(attribute_text(each) for each in attributes.values()))
        for path, attributes in places.items()
    ))  # fmt: skip


def attribute_text(attribute: Attribute) -> str:
    """The name, and the mode if others may not read it: host time, which would make runs differ."""
    return code(attribute.name) + ("" if attribute.mode & 0o004 else f" ({attribute.mode:04o})")


WHEN = {
    ("GOING", "DIE"): "It died on its way out, which changes nothing.",
}
"""Moves that the event's own words do not fit, by state and event."""


def states_table() -> str:
    """The life of an instance: from state and event to state."""
    moves = [(state, event, after) for state, row_ in TRANSITIONS.items() for event, after in row_.items()]
    words = {(state.name, event.name): docs_of_enum(type(event))[event.name] for state, event, _ in moves}
    assert WHEN.keys() <= words.keys(), "words for a move that the table does not have"
    words |= WHEN
    return table("state / event / next state / when", (
        row(code(state.name), code(event.name), code(after.name), plain(words[state.name, event.name]))
        for state, event, after in moves
    ))  # fmt: skip


def moves_table(head: str, moves: Mapping[Any, Mapping[Any, Any]]) -> str:
    """A state machine as a matrix: states by events, and the state after each."""
    events = list(dict.fromkeys(event for after in moves.values() for event in after))
    rows = (row(code(state.name), *(code(after[e].name) if e in after else "" for e in events))
            for state, after in moves.items() if after)  # fmt: skip
    return table(" / ".join([head, *(event.value for event in events)]), rows)


def operations_table() -> str:
    """kernel-ml-lib's operations: in which states each is legal, what state comes after, and what it does."""
    rows = []
    for name in mlmodel.OPERATIONS:
        legal = {state.name: after[name].name for state, after in mlmodel.TABLE.items() if name in after}
        after = (
            "the same" if all(a == b for a, b in legal.items()) else ", ".join(map(code, dict.fromkeys(legal.values())))
        )
        what = plain(getattr(MLModelProxy, name).__doc__)
        rows.append(row(code(name), ", ".join(map(code, legal)), after, what))
    return table("operation / legal in / state after / what it does", rows)


def params_table(cls: type[msgspec.Struct]) -> str:
    """Fields whose meaning stands beside the type, as ``help``."""
    rows = []
    for field in mi.type_info(cls).fields:  # type: ignore[attr-defined]
        schema = getattr(field.type, "extra_json_schema", None) or {}
        meaning = str(schema.get("description", ""))
        rows.append(row(code(field.name), in_words(field.type), code(repr(field.default)), meaning))
    return table("field / type / default / meaning", rows)


def docs_of_enum(cls: type) -> dict[str, str]:
    """Docstrings behind the members of an enum."""
    body = class_source(cls)[0].body
    return {
        node.targets[0].id: str(after.value.value)
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }  # fmt: skip


def exit_codes_table() -> str:
    """What ``uxk run`` ends with."""
    names = [name for name in vars(results) if name.startswith("EXIT_")]
    return table("code / name", sorted(row(str(getattr(results, name)), code(name)) for name in names))


def listed(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and texts."""
    return table(head, (row(code(name), text) for name, text in rows))


TABLES: dict[str, Callable[[], str]] = {
    "verbs": verbs_table, "entries": entries_table, "limits": limits_table, "errors": errors_table,
    "sysfs": sysfs_table, "states": states_table,
    "checks": lambda: listed("check / rule", ((c.__name__, plain(c.__doc__)) for c in all_checks())),
    "capabilities": lambda: listed(
        "kind / rights of a request that names none", ((kind, " ".join(r)) for kind, r in DEFAULT_RIGHTS.items())
    ),
    "exit-codes": exit_codes_table,
    "operations": operations_table, "modes": lambda: moves_table("mode", mode.TRANSITIONS),
    "dataset-states": lambda: moves_table("state", dataset.TABLE), "lfs": lambda: params_table(StudyParams),
    "mlagent": lambda: methods_table(uxk.MLAgent, ("the kernel's side",)), "online": lambda: methods_table(ml.Online),
    "context": lambda: methods_table(context.Context, ("staging",)),
    "reply": lambda: methods_table(context.Reply),
    "submissionqueue": lambda: methods_table(submission.SubmissionQueue),
    "extension": lambda: methods_table(uxk.Extension),
    "kernel": lambda: methods_table(kernel.Kernel), "module": lambda: methods_table(module.Module),
    "port": lambda: methods_table(ports.Port), "file": lambda: methods_table(chardev.File),
    **{
        cls.__name__.lower(): lambda cls=cls: fields_table(cls)  # type: ignore[misc]
        for cls in (
            manifest.Manifest, manifest.Budget, manifest.RestartPolicy, manifest.Watchdog, manifest.Sandbox,
            model.Scenario, model.Load,
            model.Workload, model.ClosedLoop, model.OpenLoop, model.Check, faults.Fault, Exploration,
            mode.ModeConfig,
            action.ActionConfig, records.Feedback, records.Dataset, GcHint, WorkloadSpec,
        )
    },
}  # fmt: skip
MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


@documents
def test_tables_are_the_code(path: Path) -> None:
    text = path.read_text("utf-8")
    wanted = MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n\n{m[4]}", text)
    if UPDATE:
        path.write_text(wanted, "utf-8")
    else:
        assert text == wanted, "run UXK_UPDATE_DOCS=1 pytest tests/test_docs.py"


def test_every_table_is_somewhere() -> None:
    used = {found[2] for path in DOCS for found in MARKED.finditer(path.read_text("utf-8"))}
    assert used == set(TABLES)


def test_every_counter_invariant_and_public_name_is_explained() -> None:
    text = (ROOT / "docs/reference.md").read_text("utf-8")
    missing = [name for name in (*COUNTERS, *GAUGES, *INVARIANTS, *uxk.__all__) if f"`{name}`" not in text]
    assert not missing


# --- links, paths, names ------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"(?m)^#+ (.*)$", FENCE.sub("", path.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@documents
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text("utf-8"))):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@documents
def test_paths_exist(path: Path) -> None:
    top = r"(?:uxk|drivers|extensions|examples|bench|tests|docs|\.ci)"
    mentioned = re.findall(rf"`({top}/[\w./-]*|Makefile|[\w-]+\.(?:md|txt))`", prose(path.read_text("utf-8")))
    assert not [name for name in mentioned if not (ROOT / name).exists()]


@documents
def test_names_exist(path: Path) -> None:
    places: dict[str, type | ModuleType] = {
        "uxk": uxk, "ctx": context.Context, "kernel": kernel.Kernel, "uxk.Op": entries.Op,
    }  # fmt: skip
    text = prose(path.read_text("utf-8"))
    missing = []
    for name, attribute in re.findall(r"`(?:await )?(uxk\.Op|uxk|ctx|kernel)\.(\w+)", text):
        known = {*dir(places[name]), *getattr(places[name], "__slots__", ()), "testing", "scenario", "modules"}
        if attribute not in known and attribute != "Op":
            missing.append(f"{name}.{attribute}")
    assert not missing


@documents
def test_verbs_exist(path: Path) -> None:
    verbs = {verb for _, verbs in cli.VERB_FILES for verb in verbs}
    mentioned = re.findall(r"`uxk (?:-k \w+ )?([a-z]\w*)", prose(path.read_text("utf-8")))
    assert not set(mentioned) - verbs
