"""``uxk check``: runs the conformance suite over one module."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from uxk.cli.common import (
    FAILED,
    GOOD,
    USAGE,
    Subparsers,
    UsageExit,
    add_verb,
    clean,
    complain,
    error_text,
    param_texts,
    print_json,
)
from uxk.errors import ManifestError, ParamError

if TYPE_CHECKING:
    from uxk.testing import Check, Subject


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(subparsers, "check", check, help="run the conformance suite over a module", json=True)
    parser.add_argument("module", metavar="MODULE", help="a module, an alias, a .py file, or a program's .toml file")
    parser.add_argument(
        "-p", "--param", metavar="NAME=VALUE", action="append", default=[], help="load it with this parameter"
    )
    parser.add_argument("--only", metavar="CHECK", action="append", default=[], help="run only this check (repeatable)")


def check(args: argparse.Namespace) -> int:
    """One line for each check as it ends; exit code 1 if any fails, 2 if the module cannot take the parameters."""
    from uxk.testing import run_checks

    try:
        examined = _subject(args)
        _try_params(examined)
    except ParamError as exc:
        complain("check", error_text(exc))
        return USAGE
    failed = passed = 0
    for result in run_checks(examined, checks=_selected(args.only, examined)):
        failed += not result.passed
        passed += result.passed
        if args.json:
            failure = result.failure
            print_json({
                "module": result.module, "check": result.check, "passed": result.passed,
                "seen": failure and failure.seen, "expected": failure and failure.expected,
            })  # fmt: skip
        elif result.failure is None:
            print(f"ok    {result.check}", flush=True)
        else:
            print(f"FAIL  {result.check}: saw {clean(result.failure.seen)};", flush=True)
            print(f"      expected {clean(result.failure.expected)}", flush=True)
    if not args.json:
        print(f"{args.module}: {passed} passed, {failed} failed")
    return FAILED if failed else GOOD


def _subject(args: argparse.Namespace) -> Subject:
    from uxk.testing import subject

    params = param_texts(args.param)
    from uxk.core.modprobe_conf import ModprobeConfig
    from uxk.kernel.catalog import FILE_SUFFIXES, Catalog

    if not args.module.endswith(FILE_SUFFIXES):
        return subject(args.module, params)

    catalog = Catalog(ModprobeConfig())
    return subject(catalog.get(catalog.add_file(args.module).name), params)


def _try_params(examined: Subject) -> None:
    """Raises ParamError if the given parameters are wrong: once, not in every check."""
    from uxk.core.params import parse_params
    from uxk.kernel.catalog import checked

    if examined.params:
        with suppress(ManifestError):  # which check_manifest reports
            parse_params(examined.name, checked(examined.cls).params, examined.params)


def _selected(names: list[str], examined: Subject) -> list[Check]:
    from uxk.testing.checks import checks_for

    known = {each.__name__: each for each in checks_for(examined)}
    wanted = [name if name.startswith("check_") else f"check_{name}" for name in names]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageExit(f"--only {unknown[0]}: no such check of this module; known: {', '.join(known)}")
    return [known[name] for name in wanted] or list(known.values())
