"""``uxk new``: begins a module as a package of its own, with tests that pass at once.

A driver or an extension is the source of a template module, ``uxk_null`` or ``uxk_echo``, under a new name: what an
author starts from is what uxk itself ships and tests.  An ml-agent begins with a text of its own.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import importlib.util
import keyword
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, NamedTuple

from uxk.cli.common import GOOD, Subparsers, add_verb
from uxk.cli.templates import DOCSTRINGS, ML_AGENT, PYPROJECT, TESTS
from uxk.core.manifest import canonical, name_problem
from uxk.errors import UsageError


class Template(NamedTuple):
    """A module to copy: its name and its class."""

    name: str
    cls: str


TEMPLATES: Final = {"driver": Template("null", "Null"), "extension": Template("echo", "Echo")}
PREFIX: Final = "uxk_"


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "new", new, help="begin a module: a package with tests")
    kinds = "a copy of the null driver or of the echo extension, or an agent that learns"
    parser.add_argument("kind", choices=sorted(TESTS), help=kinds)
    parser.add_argument("name", metavar="NAME", help="the module's name; the package is called uxk_NAME")
    parser.add_argument("--dir", metavar="DIR", type=Path, default=Path(), help="where to put it (default: here)")


def new(args: argparse.Namespace) -> int:
    """Writes the package and says what to do next."""
    folder = generate(args.kind, args.name, args.dir)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(path)
    name = folder.name.removeprefix(PREFIX)
    print(f"\nNext, in {folder}:\n  pip install -e '.[test]'")
    print("  python -m pytest        # its own test and the conformance suite")
    print(f"  uxk modinfo {name}; uxk check {name}")
    return GOOD


def generate(kind: str, name: str, directory: Path) -> Path:
    """Writes a package ``uxk_NAME`` into ``directory`` and returns its folder; writes all of it or nothing.

    Raises :class:`UsageError` for a name that cannot be or is taken, and EEXIST if the folder exists.
    """
    name = _checked_name(name)
    folder = directory / f"{PREFIX}{name}"
    if folder.exists():
        raise UsageError(f"{folder}: exists already", errno=errno.EEXIST)
    files = _files(kind, name)
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _checked_name(name: str) -> str:
    from uxk.kernel.catalog import ENTRY_POINT_GROUP

    problem = name_problem(name)
    if problem:
        raise UsageError(problem)
    name = canonical(name)
    if name.startswith(PREFIX):
        raise UsageError(f"name {name!r}: give it without {PREFIX!r}; the package gets that prefix by itself")
    if name in {canonical(installed) for installed in entry_points(group=ENTRY_POINT_GROUP).names}:
        raise UsageError(f"name {name!r}: there is a module of that name already (uxk modinfo {name})")
    if len(PREFIX + name) > 64 or not (PREFIX + name).isidentifier():
        raise UsageError(f"name {name!r}: {PREFIX + name!r} is no name for a Python package")
    return name


def _files(kind: str, name: str) -> dict[str, str]:
    source = ML_AGENT if kind == "ml-agent" else _source(TEMPLATES[kind])
    cls = _class_name(name, source)
    fields = {"kind": kind, "name": name, "dashed": name.replace("_", "-"), "cls": cls}
    package = f"{PREFIX}{name}"
    docstring = DOCSTRINGS[kind].format(**fields)
    if kind == "ml-agent":
        module = source.format(docstring=docstring, **fields)
    else:
        module = _renamed(source, TEMPLATES[kind], docstring, name, cls)
    return {
        "pyproject.toml": PYPROJECT.format(**fields),
        f"{package}/__init__.py": module,
        f"{package}/py.typed": "",
        f"tests/test_{name}.py": TESTS[kind].format(**fields),
    }


def _source(template: Template) -> str:
    """The template module's own source; finding it runs none of its code."""
    spec = importlib.util.find_spec(f"{PREFIX}{template.name}")
    if spec is None or spec.origin is None:
        raise UsageError(
            f"the template module {PREFIX}{template.name} cannot be found: is uxk installed, with its modules?",
            errno=errno.ENOENT,
        )
    return Path(spec.origin).read_text("utf-8")


def _class_name(name: str, source: str) -> str:
    """``my_disk`` as ``MyDisk``; another name if Python or the template has that one already."""
    cls = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    taken = keyword.iskeyword(cls) or hasattr(builtins, cls) or re.search(rf"\b{cls}\b", source)
    if taken or not cls.isidentifier():
        cls = f"Module{cls}"
    return cls


def _renamed(source: str, template: Template, docstring: str, name: str, cls: str) -> str:
    """The template under another name: class, parameters, paths in comments; the author's line is left out."""
    _, _, rest = source.removeprefix('"""').partition('"""')
    rest = re.sub(rf"\b{template.cls}(Params)?\b", rf"{cls}\1", rest)
    rest = re.sub(r'\n +author="[^"]*",', "", rest)
    rest = rest.replace(f'name="{template.name}"', f'name="{name}"')
    rest = re.sub(rf"(modprobe |/sys/module/|/dev/){template.name}\b", rf"\g<1>{name}", rest)
    return docstring + rest
