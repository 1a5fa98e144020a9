"""``uxk modinfo`` and ``uxk depmod``: what modules say of themselves, and what they need."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uxk.cli.common import FAILED, GOOD, Subparsers, add_verb, clean, complain, print_json, with_kernel

if TYPE_CHECKING:
    from uxk.uapi.info import Dependencies, ModuleInfo, Parameter

FILES = (".py", ".toml")


def register(subparsers: Subparsers) -> None:
    """Adds the verbs."""
    parser = add_verb(subparsers, "modinfo", modinfo, kernel=True, help="show what a module says of itself", json=True)
    parser.add_argument("-F", "--field", metavar="FIELD", help="print only this field's values, one per line")
    parser.add_argument("name", metavar="NAME", help="a module, an alias, or a .py or .toml file")
    add_verb(subparsers, "depmod", depmod, kernel=True, help="print dependencies and aliases of all modules", json=True)


def modinfo(args: argparse.Namespace) -> int:
    """Works with and without a running kernel."""
    info = _info(args)
    if args.json:
        print_json(info)
    elif args.field:
        for name, value in modinfo_fields(info):
            if name == args.field:
                print(value)
    else:
        print(modinfo_text(info))
    return GOOD


def _info(args: argparse.Namespace) -> ModuleInfo:
    if args.kernel and not args.name.endswith(FILES):
        return with_kernel(args, lambda kernel: kernel.modinfo(args.name))
    from uxk.kernel.kernel import Kernel

    kernel = Kernel()
    if args.name.endswith(FILES):  # a file is looked at here, as kmod's modinfo does
        return kernel.modinfo(kernel.catalog.add_file(args.name).name)
    return kernel.modinfo(args.name)


def modinfo_text(info: ModuleInfo) -> str:
    """kmod's layout (tools/modinfo.c): values from column 16."""
    return "\n".join(f"{name + ':':<15} {value}" for name, value in modinfo_fields(info))


def modinfo_fields(info: ModuleInfo) -> Iterator[tuple[str, str]]:
    """Names and values in kmod's order, then what only uxk has; empty ones are left out where kmod does."""
    yield "filename", clean(info.filename)
    for name in ("version", "license", "description", "author"):
        if value := getattr(info, name):
            yield name, clean(value)
    for alias in info.alias:
        yield "alias", clean(alias)
    yield "depends", clean(",".join(info.depends))
    if info.softdep:
        yield "softdep", clean(info.softdep)
    yield "name", clean(info.name)
    yield "kind", info.kind
    yield "class", clean(info.driver_class)
    for capability in info.capabilities:
        yield "capability", clean(capability)
    yield "placement", info.placement
    yield "memory", " + ".join((f"{info.memory_bytes} bytes", *info.memory_params))
    yield "queue_depth", str(info.queue_depth)
    for asked in info.sandbox:
        yield "sandbox", clean(asked)
    for parameter in info.parameters:
        yield "parm", clean(parm_text(parameter))


def parm_text(parameter: Parameter) -> str:
    """``name:help (type)`` as kmod has it; the default and the limits stand in brackets behind the help."""
    limits = [parameter.constraint_text, parameter.unit and f"in {parameter.unit}"]
    default = parameter.default_text
    limits.append("required" if default == "required" else f"default {default}" if default else "")
    limits.append("writable" if parameter.writable else "")
    remarks = f"[{', '.join(filter(None, limits))}]" if any(limits) else ""
    return f"{parameter.name}:{' '.join(filter(None, (parameter.help, remarks)))} ({parameter.type_text})"


def depmod(args: argparse.Namespace) -> int:
    """Prints modules.dep and modules.alias; problems go to stderr and make it fail."""
    found = _dependencies(args)
    if args.json:
        print_json(found)
    else:
        print(found.modules_dep + found.modules_alias, end="")
    for problem in found.problems:
        complain("depmod", clean(problem))
    return FAILED if found.problems else GOOD


def _dependencies(args: argparse.Namespace) -> Dependencies:
    if args.kernel:
        return with_kernel(args, lambda kernel: kernel.depmod())
    from uxk.kernel.kernel import Kernel

    return Kernel().depmod()
