"""The house style: who imports whom, no floats in the kernel, bounded lengths, docstrings.

Every rule is a generator over one parsed file and yields (line, complaint); the table ``RULES`` lists them.
``test_rule_rejects`` shows each rule an offence, so that a rule that has gone blind is noticed.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent

# --- what is allowed ---------------------------------------------------------------------------------

ROOMS = (
    ("errors",), ("limits",), ("uapi",), ("core",), ("sdk",), ("actor",), ("bpf",), ("kernel",), ("subsystems",),
    ("bridges",), ("faults",), ("scenario",), ("testing",), ("cli",),
)  # fmt: skip
"""From the foundations up: a room imports only itself and rooms before it."""
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}

ROOM_OF_FILE = {
    "uxk/__init__.py": "facade", "uxk/__main__.py": "cli", "uxk/errors.py": "errors", "uxk/limits.py": "limits",
    "uxk/context.py": "sdk", "uxk/driver.py": "sdk", "uxk/evaluation.py": "sdk", "uxk/ml.py": "sdk",
    "uxk/module.py": "sdk",
    "uxk/reply.py": "sdk", "uxk/submission.py": "sdk",
}  # fmt: skip
"""Files that are not in a room's folder."""

FACADE_USERS = frozenset({"scenario", "testing", "cli"})
"""Rooms above all that the facade names, which may therefore ``import uxk``."""

PUBLIC_MODULES = frozenset({
    "uxk.subsystems.lfs.hint", "uxk.subsystems.lfs.miniature", "uxk.subsystems.lfs.policies", "uxk.uapi.blk",
    "uxk.uapi.nvme", "uxk.core.params.parse_integer", "uxk.core.suggest.did_you_mean",
    "uxk.uapi.mllib", "uxk.uapi.mllibabi", "uxk.uapi.ml", "uxk.bpf.compiler.compile", "uxk.bpf.compiler.models",
    "uxk.subsystems.lfs.rows",
})  # fmt: skip
"""What loadable modules may import beside ``uxk`` itself: agents try policies as the kernel runs them, and compile
what they have learned for what a site shows, drivers and
their clients share the words of block devices, and what is written against kernel-ml-lib finds its names, layouts and
records."""

EXTRAS = frozenset({"*"})
"""Whatever pyproject.toml declares, optional dependencies included."""
THIRD_PARTY: dict[str, frozenset[str]] = {
    "facade": frozenset(),
    "errors": frozenset(),
    "limits": frozenset(),
    "uapi": frozenset({"msgspec"}),
    "core": frozenset({"msgspec", "numpy"}),
    "sdk": frozenset({"msgspec", "numpy", "trio"}),
    "actor": frozenset({"msgspec", "numpy", "trio"}),
    "bpf": frozenset({"msgspec", "numpy"}),
    "kernel": frozenset({"msgspec", "numpy", "trio"}),
    "subsystems": frozenset({"llvmlite", "msgspec", "numba", "numpy"}),
    "bridges": EXTRAS,
    "faults": frozenset({"msgspec", "numpy", "trio"}),
    "scenario": EXTRAS,
    "testing": EXTRAS,
    "cli": EXTRAS,
}
THIRD_PARTY_OF_FILE = {
    "uxk/ml.py": frozenset({"river"}), "uxk/evaluation.py": frozenset({"river"}),
    "uxk/actor/sandbox.py": frozenset({"landlockpy"}),
    "uxk/actor/syscalls.py": frozenset({"seccompy"}), "uxk/bpf/batch_jit.py": frozenset({"llvmlite"}),
    "uxk/bpf/elf.py": frozenset({"elftools"}),
}  # fmt: skip
"""The typed adapter to river and what scores its models; the two files that know the packages of ``sandbox``."""

INTEGER_ROOMS = frozenset({"core", "kernel", "subsystems"})
SECONDS = "uxk/kernel/seconds.py"
"""The sole file of the integer rooms that may divide, and read the host's clocks."""
STREAMS = "uxk/core/streams.py"
"""The sole file of the integer rooms that may use numpy's random numbers."""
FLOAT_MODULES = frozenset({"math", "cmath", "statistics", "fractions", "decimal", "random"})
FLOAT_NAMES_OF_NUMPY = frozenset({
    "float16", "float32", "float64", "float_", "half", "single", "double", "longdouble", "mean", "std", "var",
    "average", "median", "sqrt", "divide", "true_divide",
})  # fmt: skip
FLOAT_ATTRIBUTES = frozenset({"truediv", "__truediv__", "mean", "std"})
"""Whatever they are attributes of: ``operator``, an array."""

BANNED_MODULES: dict[str, frozenset[str]] = {
    "uapi": frozenset({"random", "secrets", "time", "datetime", "uuid"}),
    "core": frozenset({
        "random", "secrets", "time", "datetime", "uuid", "socket", "select", "selectors", "subprocess", "signal",
        "multiprocessing",
    }),
    "kernel": frozenset({"random", "secrets", "time", "datetime", "uuid"}),
    "subsystems": frozenset({"random", "secrets", "time", "datetime", "uuid"}),
}  # fmt: skip
"""Hidden inputs make runs irreproducible; core does no I/O at all."""
BANNED_EVERYWHERE = frozenset({"asyncio"})
THREADING_ALLOWED = frozenset({"uxk/kernel/watch.py", "uxk/bridges/datalog/pump.py"})
"""Files of uxk that may import threading or concurrent.futures: the watch over an actor that never yields, and the
thread that waits for the disk in the kernel's place."""

LINES_MAX = 500
TEST_LINES_MAX = 700
FUNCTION_LINES_MAX = 60

# Written in halves, so that this file obeys them.
BANNED_WORDS = re.compile(
    "|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"NotImplemented" + "Error"))
)
REGISTRY_HOSTS = re.compile(
    "|".join((r"py" + r"pi\.org", r"python" + r"hosted\.org", r"npm" + r"js\.(org|com)", r"conda\." + r"anaconda\.org",
              r"--(extra-)?index" + r"-url", r"--find" + r"-links"))
)  # fmt: skip

# --- the files -----------------------------------------------------------------------------------------

SKIPPED_DIRS = frozenset({"__pycache__", "build", "dist", "node_modules", "runs"})
SHOWN_DOT_DIRS = frozenset({".ci", ".github"})


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, with slashes, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room it lives in, ``module`` for loadable modules, or ``""``."""
        parts = self.path.split("/")
        if parts[0] in ("drivers", "extensions"):
            return "module"
        if parts[0] != "uxk":
            return ""
        if self.path in ROOM_OF_FILE:
            return ROOM_OF_FILE[self.path]
        return parts[1] if len(parts) > 2 and parts[1] in RANK else "unknown"

    @property
    def is_test(self) -> bool:
        """Whether it is a test or a helper of tests."""
        name = self.path.rsplit("/", 1)[-1]
        return "tests" in self.path.split("/")[:-1] or name == "conftest.py" or name.startswith("test_")


def parse(path: str, text: str) -> Source:
    """A file, real or made up."""
    return Source(path, text, ast.parse(text, path))


@cache
def all_files() -> tuple[Path, ...]:
    """Every file of the project, without what is generated."""
    found = []
    for folder, dirs, names in os.walk(ROOT):
        dirs[:] = sorted(
            d for d in dirs if d not in SKIPPED_DIRS and (not d.startswith(".") or d in SHOWN_DOT_DIRS)
            and not d.endswith(".egg-info")
        )  # fmt: skip
        found += [Path(folder, name) for name in sorted(names) if not name.endswith(".pyc")]
    return tuple(found)


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the project, parsed."""
    return tuple(
        parse(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        for path in all_files()
        if path.suffix == ".py"
    )


@cache
def distributions() -> frozenset[str]:
    """Import names of everything that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = chain(project["dependencies"], *project["optional-dependencies"].values())
    return frozenset(re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_").lower() for line in declared)


# --- imports -------------------------------------------------------------------------------------------


def imports(source: Source) -> Iterator[tuple[int, str, str]]:
    """Each import anywhere in the file as (line, module, imported name or "")."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            package = source.path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name


def room_of_import(module: str, name: str) -> str:
    """The room of uxk that an import reaches, or ``facade``."""
    parts = [*module.split("."), *([name] if name else [])]
    first = parts[1] if len(parts) > 1 else ""
    if first in RANK:
        return first
    return ROOM_OF_FILE.get(f"uxk/{first}.py", "facade")


def import_directions(source: Source) -> Iterator[tuple[int, str]]:
    """uxk's rooms import only downwards, and never a loadable module."""
    room = source.room
    if room in ("", "module"):
        return
    if room == "unknown":
        yield 1, f"belongs to no room of docs/ARCHITECTURE.md: {', '.join(RANK)}"
        return
    for line, module, name in imports(source):
        top = module.split(".")[0]
        if top.startswith("uxk_") or top in ("drivers", "extensions"):
            yield line, f"imports {module}: uxk never imports a loadable module"
        elif top == "uxk" and room != "facade":
            target = room_of_import(module, name)
            if target == "facade" and room not in FACADE_USERS:
                yield line, f"imports {name or module} through the facade: name the file it comes from"
            elif target != "facade" and RANK[target] > RANK[room]:
                yield line, f"{room} imports {module}: {target} is above it"


def third_party(source: Source) -> Iterator[tuple[int, str]]:
    """A room uses only the distributions that the table grants it."""
    allowed = THIRD_PARTY.get(source.room)
    if allowed is None:
        return
    allowed = (distributions() if allowed == EXTRAS else allowed) | THIRD_PARTY_OF_FILE.get(source.path, frozenset())
    typing_only = set(lines_for_type_checkers(source))
    for line, module, _ in imports(source):
        top = module.split(".")[0]
        if top == "uxk" or top.startswith("uxk_") or top in sys.stdlib_module_names:
            continue
        if top not in allowed and not (top == "typing_extensions" and line in typing_only):
            yield line, f"{source.room} imports {top}; it may use {', '.join(sorted(allowed)) or 'nothing'}"


def lines_for_type_checkers(source: Source) -> Iterator[int]:
    """The lines under ``if TYPE_CHECKING``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from range(child.lineno, (child.end_lineno or child.lineno) + 1)


def lazy_facade(source: Source) -> Iterator[tuple[int, str]]:
    """Importing uxk imports nothing of uxk and no third party."""
    if source.room != "facade":
        return
    typing_only = set(lines_for_type_checkers(source))
    inside = {
        child.lineno for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)
    }  # fmt: skip
    for line, module, _ in imports(source):
        if line not in typing_only | inside and module.split(".")[0] not in sys.stdlib_module_names:
            yield line, f"imports {module} when uxk is imported: do it lazily"


def banned_modules(source: Source) -> Iterator[tuple[int, str]]:
    """No hidden inputs where runs must repeat; no other event loop; threads only where they are declared."""
    if not source.path.startswith("uxk/"):
        return
    banned = BANNED_EVERYWHERE | BANNED_MODULES.get(source.room, frozenset())
    if source.path == SECONDS:
        banned -= {"time"}
    if source.path not in THREADING_ALLOWED:
        banned |= {"threading", "concurrent"}
    for line, module, _ in imports(source):
        if module.split(".")[0] in banned:
            yield line, f"{source.room} may not import {module}"


def module_imports(source: Source) -> Iterator[tuple[int, str]]:
    """A loadable module sees only the names that uxk itself exports, and PUBLIC_MODULES; its tests also uxk.testing."""
    if source.room != "module":
        return
    own = source.path.split("/")[1]
    for line, module, name in imports(source):
        top = module.split(".")[0]
        if top in ("drivers", "extensions") or (top.startswith("uxk_") and top != own):
            yield line, f"imports {module}: modules never import each other"
        elif top == "uxk" and not is_public(module, name, testing=source.is_test):
            what = f"{module}.{name}" if name else module
            yield line, f"imports {what}: modules use only `import uxk`, its names and PUBLIC_MODULES"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "uxk":
            reached = room_of_import("uxk", node.attr)
            if reached != "facade" and not (reached == "testing" and source.is_test):
                yield node.lineno, f"reaches into uxk.{node.attr}: modules use only uxk's own names"


def is_public(module: str, name: str, *, testing: bool) -> bool:
    """Whether an import of uxk names only its public surface."""
    if module == "uxk":
        return name == "" or room_of_import(module, name) == "facade" or (testing and name == "testing")
    if not PUBLIC_MODULES.isdisjoint({module, f"{module}.{name}"}):
        return True
    return testing and (module == "uxk.testing" or module.startswith("uxk.testing."))


# --- numbers ---------------------------------------------------------------------------------------------


def integers_only(source: Source) -> Iterator[tuple[int, str]]:
    """No floating point on the kernel's side (R22)."""
    if source.room not in INTEGER_ROOMS or source.path == SECONDS:
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Constant(value=float() | complex()):
                yield node.lineno, f"float literal {node.value!r}: use integers, ppm or ns"
            case ast.BinOp(op=ast.Div()) if not is_path_join(node):
                yield node.lineno, f"true division `{ast.unparse(node)}`: use //"
            case ast.AugAssign(op=ast.Div()):
                yield node.lineno, f"true division `{ast.unparse(node)}`: use //="
            case ast.Call(func=ast.Name(id="float")):
                yield node.lineno, f"`{ast.unparse(node)}`: use integers"
            case ast.Call(func=ast.Name(id="pow"), args=[_, _]):
                yield node.lineno, f"`{ast.unparse(node)}` may be a fraction: use ** or <<"
            case ast.BinOp(op=ast.Pow(), right=ast.UnaryOp(op=ast.USub())):
                yield node.lineno, f"`{ast.unparse(node)}` is a fraction"
            case ast.Attribute(attr=name) if name in FLOAT_ATTRIBUTES:
                yield node.lineno, f"`{ast.unparse(node)}`: use integers"


def float_sources(source: Source) -> Iterator[tuple[int, str]]:
    """The kernel's side takes neither fractions nor chance from a library."""
    if source.room not in INTEGER_ROOMS or source.path == SECONDS:
        return
    banned = FLOAT_NAMES_OF_NUMPY | (frozenset() if source.path == STREAMS else {"random"})
    for line, module, name in imports(source):
        top, *below = [*module.split("."), name]
        if top in FLOAT_MODULES or (top == "operator" and name == "truediv"):
            yield line, f"imports {name or module}: use integers; random numbers come from uxk.core.streams"
        elif top == "numpy" and not banned.isdisjoint(below):
            yield line, f"imports {module}.{name}: use integers; random numbers come from uxk.core.streams"
    aliases = {
        alias.asname or "numpy" for node in ast.walk(source.tree) if isinstance(node, ast.Import)
        for alias in node.names if alias.name.split(".")[0] == "numpy"
    }  # fmt: skip
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in aliases and name in banned:
                yield node.lineno, f"`{ast.unparse(node)}`: use integers; random numbers come from uxk.core.streams"


def is_path_join(node: ast.BinOp) -> bool:
    """Whether ``/`` joins a path: one side is a string literal, which no number is divided by."""
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


# --- size, words, docstrings -------------------------------------------------------------------------------


def file_length(source: Source) -> Iterator[tuple[int, str]]:
    """A file is short enough to read at one sitting."""
    lines = source.text.count("\n")
    limit = TEST_LINES_MAX if source.is_test or source.path.startswith("bench/") else LINES_MAX
    if lines > limit:
        yield limit, f"{lines} lines, at most {limit}"


def function_length(source: Source) -> Iterator[tuple[int, str]]:
    """A function fits on a screen."""
    if source.is_test:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def banned_words(source: Source) -> Iterator[tuple[int, str]]:
    """Nothing is left for later, nothing is a stub."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := BANNED_WORDS.search(line):
            yield number, f"contains {found.group()}"


def docstrings(source: Source) -> Iterator[tuple[int, str]]:
    """Every public module, class and function of uxk, and of the modules to copy, says what it is."""
    if source.room == "" or source.is_test:
        return
    name = source.path.rsplit("/", 1)[-1]
    if (name == "__init__.py" or not name.startswith("_")) and not ast.get_docstring(source.tree):
        yield 1, "module has no docstring"
    if source.path.startswith("uxk/"):
        yield from undocumented(source.tree, "")


def undocumented(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[int, str]]:
    """Public definitions of a module or class that lack a docstring."""
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(d).rsplit(".", 1)[-1] for d in node.decorator_list}
        if not ast.get_docstring(node) and not decorators & {"overload", "override", "setter", "deleter"}:
            yield node.lineno, f"{prefix}{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{prefix}{node.name}.")


# --- the tests ---------------------------------------------------------------------------------------------

Rule: TypeAlias = Callable[[Source], Iterator[tuple[int, str]]]
RULES: tuple[Rule, ...] = (
    import_directions, third_party, lazy_facade, banned_modules, module_imports, integers_only, float_sources,
    file_length, function_length, banned_words, docstrings,
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule) -> None:
    offences = [f"{source.path}:{line}: {what}" for source in sources() for line, what in sorted(rule(source))]
    assert not offences, f"{rule.__doc__}\n" + "\n".join(offences)


# Rule, path, text, and the lines it must object to.
CASES: tuple[tuple[Rule, str, str, list[int]], ...] = (
    (import_directions, "uxk/core/a.py", "from uxk.kernel import x\nfrom uxk import errors\nimport uxk.bpf", [1, 3]),
    (import_directions, "uxk/core/a.py", "def f():\n    from ..kernel import x", [2]),
    (import_directions, "uxk/actor/a.py", "from uxk import kernel\nfrom uxk.module import Extension", [1]),
    (import_directions, "uxk/uapi/a.py", "from uxk.core.ring import Ring", [1]),
    (import_directions, "uxk/kernel/a.py", "import uxk\nfrom uxk import Extension\nimport uxk.errors", [1, 2]),
    (import_directions, "uxk/testing/a.py", "import uxk\nimport uxk_null\nimport drivers.uxk_null", [2, 3]),
    (import_directions, "uxk/stray.py", "", [1]),
    (third_party, "uxk/core/a.py", "import trio\nimport numpy as np\nimport river", [1, 3]),
    (third_party, "uxk/kernel/a.py", "import trio, msgspec\nfrom river import linear_model", [2]),
    (third_party, "uxk/ml.py", "def f():\n    import river\n    import torch", [3]),
    (third_party, "uxk/errors.py", "import msgspec\nimport errno", [1]),
    (third_party, "uxk/cli/a.py", "import trio\nimport unheard_of", [2]),
    (third_party, "uxk/module.py", "if TYPE_CHECKING:\n    import typing_extensions\nimport typing_extensions", [3]),
    (lazy_facade, "uxk/__init__.py", "import sys\nfrom uxk.module import Extension", [2]),
    (lazy_facade, "uxk/__init__.py", "if TYPE_CHECKING:\n    from uxk.module import A\ndef f():\n    import trio", []),
    (banned_modules, "uxk/core/a.py", "import time\nfrom random import random\nimport heapq", [1, 2]),
    (banned_modules, "uxk/kernel/a.py", "import time\nimport threading\nimport asyncio", [1, 2, 3]),
    (banned_modules, SECONDS, "import time", []),
    (banned_modules, "bench/a.py", "import time, asyncio, threading", []),
    (module_imports, "drivers/uxk_a/__init__.py", "import uxk\nfrom uxk import Extension\nfrom uxk_a.x import y", []),
    (module_imports, "drivers/uxk_a/__init__.py", "import uxk.kernel\nfrom uxk import kernel\nimport uxk_b", [1, 2, 3]),
    (module_imports, "extensions/uxk_a/a.py", "from uxk.testing import x\nfrom uxk.module import Extension", [1, 2]),
    (module_imports, "extensions/uxk_a/a.py", "from uxk.subsystems.lfs.hint import x\nimport uxk.subsystems.lfs", [2]),
    (module_imports, "extensions/uxk_a/a.py", "from uxk.subsystems.lfs import policies, codes\nimport uxk as u", [1]),
    (module_imports, "extensions/uxk_a/a.py", "from uxk.subsystems.lfs.policies.base import Placement", [1]),
    (module_imports, "extensions/uxk_a/tests/test_a.py", "from uxk.testing import x\nfrom uxk.core import y", [2]),
    (module_imports, "drivers/uxk_a/a.py", "import uxk\nk = uxk.kernel.Kernel\nm = uxk.Manifest", [2]),
    (integers_only, "uxk/core/a.py", "1.5\n3 // 2\n3 / 2\nc /= 2\nfloat(1)\n1e3\n2j", [1, 3, 4, 5, 6, 7]),
    (integers_only, "uxk/kernel/a.py", "p = path / 'x'\nq = path / f'{p}'\nr = p / q", [3]),
    (integers_only, "uxk/core/a.py", "pow(2, -1)\npow(2, -1, 7)\n2 ** -1\n2 ** n", [1, 3]),
    (integers_only, "uxk/kernel/a.py", "operator.truediv\na.__truediv__(2)\na.mean()\nb.std()", [1, 2, 3, 4]),
    (float_sources, "uxk/core/a.py", "import numpy as np\nnp.float64(3)\nnp.mean(a)\nnp.sqrt(2)\nnp.int64", [2, 3, 4]),
    (float_sources, "uxk/core/a.py", "import numpy\nnumpy.std(a)\nnumpy.average(a)\nnumpy.float_", [2, 3, 4]),
    (float_sources, "uxk/kernel/a.py", "import numpy as n\nn.float16\nn.float32\nn.true_divide(1, 2)", [2, 3, 4]),
    (float_sources, "uxk/core/a.py", "import numpy as np\nnp.random.default_rng()", [2]),
    (float_sources, "uxk/kernel/a.py", "from numpy import random, int64\nfrom numpy.random import default_rng", [1, 2]),
    (float_sources, "uxk/kernel/a.py", "import numpy.random\nfrom numpy import float64 as f", [1, 2]),
    (float_sources, "uxk/kernel/a.py", "import math\nfrom statistics import mean\nimport fractions, heapq", [1, 2, 3]),
    (float_sources, "uxk/subsystems/a.py", "import decimal\nimport random\nimport cmath", [1, 2, 3]),
    (float_sources, "uxk/core/a.py", "from operator import truediv, floordiv", [1]),
    (float_sources, STREAMS, "import numpy as np\nnp.random.default_rng()\nnp.sqrt(2)", [3]),
    (float_sources, SECONDS, "import math", []),
    (float_sources, "uxk/scenario/a.py", "import math", []),
    (integers_only, SECONDS, "a = 1 / 2", []),
    (integers_only, "uxk/scenario/a.py", "a = 1 / 2", []),
    (file_length, "uxk/core/a.py", "\n" * 501, [500]),
    (file_length, "bench/a.py", "\n" * 700, []),
    (file_length, "tests/test_a.py", "\n" * 701, [700]),
    (function_length, "uxk/core/a.py", "def f():\n" + "    1\n" * 59 + "def g():\n" + "    1\n" * 60, [61]),
    (banned_words, "uxk/core/a.py", "# TO" + "DO later\nraise NotImplemented" + "Error", [1, 2]),
    (docstrings, "uxk/core/a.py", "class A:\n    def f(self): pass\n    def _g(self): pass", [1, 1, 2]),
    (docstrings, "uxk/core/a.py", "'A.'\nclass A:\n    'A.'\n    def f(self): 'F.'\ndef _g(): pass", []),
    (docstrings, "drivers/uxk_a/a.py", "def f(): pass", [1]),
    (docstrings, "tests/test_a.py", "def test_f(): pass", []),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "text", "lines"), CASES)
def test_rule_rejects(rule: Rule, path: str, text: str, lines: list[int]) -> None:
    assert sorted(line for line, _ in rule(parse(path, text))) == lines


def test_every_rule_is_shown_an_offence() -> None:
    assert {rule for rule, _, _, lines in CASES if lines} == set(RULES)


def test_no_registry_addresses() -> None:
    offences = []
    for path in all_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := REGISTRY_HOSTS.search(line):
                offences.append(f"{path.relative_to(ROOT).as_posix()}:{number}: mentions {found.group()}")
    assert not offences, "where packages come from is the machine's business\n" + "\n".join(offences)


def run_python(program: str) -> str:
    """What a fresh interpreter that finds uxk prints."""
    path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_uxk_imports_no_kernel() -> None:
    heavy = run_python("import uxk, sys; print(*sorted({'uxk.kernel', 'river', 'trio', 'numpy'} & set(sys.modules)))")
    assert heavy.split() == []


def test_an_author_imports_no_kernel() -> None:
    program = "import uxk, sys; uxk.Extension, uxk.Manifest; print(*sorted({'uxk.kernel', 'river'} & set(sys.modules)))"
    assert run_python(program).split() == []
