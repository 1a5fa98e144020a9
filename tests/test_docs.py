"""What the documents show happens, and what they list exists.

Each document is a session in an empty folder, from top to bottom:

* a block with ``file=NAME`` behind its language is written to that file;
* a ``console`` block runs in one shell: after each ``$ command`` stands what it prints (``...`` stands for anything);
  ``console background`` starts its command, waits for the output shown, and lets it run on (another terminal);
* the ``python`` blocks without a file run in one interpreter, at the end.

``<!-- needs: NAMES -->`` names programs of others, or ``fuse``; where one is missing, the session is skipped.

Tables between ``<!-- table: NAME -->`` and ``<!-- /table -->`` are made from the code.  ``UXK_UPDATE_DOCS=1`` writes
tables and outputs anew; read the difference before you believe it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, NamedTuple

import pytest

import uxk
from uxk import cli, context
from uxk.bridges.fuse import library
from uxk.core.account import COUNTERS, GAUGES
from uxk.kernel import kernel
from uxk.scenario.invariants import INVARIANTS
from uxk.uapi import entries

sys.path.insert(0, str(Path(__file__).parent))  # for doctables, which is no test

from doctables import TABLES

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


def installed(name: str) -> bool:
    """Whether a program can be run; ``fuse`` stands for all that a mount takes."""
    if name == "fuse":
        return not library.missing()
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is not None


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
    if missing := [name for name in needs(text) if not installed(name)]:
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
