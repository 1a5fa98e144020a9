"""Tables of the documents, made from the code: fields, methods, verbs, limits, states."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import msgspec.inspect as mi

import uxk
from uxk import cli, context, errors, limits, ml, submission
from uxk.core import action, dataset, mllib, mlmodel, mode
from uxk.core.lifecycle import TRANSITIONS
from uxk.core.manifest import DEFAULT_RIGHTS
from uxk.core.tree import Attribute
from uxk.faults import model as faults
from uxk.kernel import actions, chardev, devices, kernel, module, ports, proxyviews, views
from uxk.kernel.mllib import MlLib
from uxk.kernel.proxy import MLModelProxy
from uxk.scenario import model, results
from uxk.scenario.exploring import Exploration
from uxk.scenario.lfs.study import StudyParams, WorkloadSpec
from uxk.subsystems.lfs.hint import GcHint
from uxk.testing import all_checks
from uxk.uapi import entries, manifest, mllibabi
from uxk.uapi import ml as records
from uxk.uapi.mllib import API


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
    return table(" / ".join([head, *(getattr(event, "value", event) for event in events)]), rows)


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


def layouts_table() -> str:
    """Structures of kernel-ml-lib: members with their offsets."""
    rows = []
    for each in mllibabi.LAYOUTS.values():
        members = ", ".join(
            f"{field.offset} {code(field.name)} {f'char[{field.length}]' if field.length else field.kind}"
            for field in each.fields
        )
        what = f"**uxk proposal**: {each.what}" if each.proposal else each.what
        rows.append(row(code(f"struct {each.name}"), str(each.size_bytes), members, what))
    return table("structure / bytes / offset, member, type / what it says", rows)


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
    "subsystem-states": lambda: moves_table("state", mllib.SUBSYSTEM),
    "request-config-states": lambda: moves_table("state", mllib.REQUEST_CONFIG),
    "ml-lib-api": lambda: listed("call / what it does", ((name, plain(getattr(MlLib, name).__doc__)) for name in API)),
    "ml-lib-layouts": layouts_table,
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
            uxk.DataLogSettings, action.ActionConfig, records.Feedback, records.Dataset, GcHint, WorkloadSpec,
        )
    },
}  # fmt: skip
