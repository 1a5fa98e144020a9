"""The conformance suite: what every module must obey, one small function for each rule.

``for check in all_checks(): check(subject("null"))`` examines a module; ``uxk check null`` does so from a shell.
The shape is that of river's ``checks/common.py``: functions of one argument that raise, all named in one place.
Each check boots kernels of its own, so call checks outside of Trio; none depends on another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from uxk.core.manifest import manifest_problems
from uxk.core.params import describe_params
from uxk.kernel.catalog import ExtensionClass, description
from uxk.kernel.foreign import Foreign
from uxk.testing import lifecycle, misuse, parameters, service
from uxk.testing.subject import Check, CheckFailure, Subject, check, expect, subject


@check
def check_manifest(examined: Subject) -> None:
    """The manifest obeys the rules and tells a stranger what the module is and what its parameters mean."""
    manifest = examined.manifest
    problems = manifest_problems(manifest)
    expect(not problems, "; ".join(problems), "a valid manifest")
    expect(description(examined.cls), "no description and no docstring", "a line that says what the module is")
    for name in ("version", "license"):
        value = getattr(manifest, name)
        expect(value and value != "0", f"{name}={value!r}", f"a {name}")
    silent = [info.name for info in describe_params(manifest.params) if not info.help]
    expect(not silent, f"no help for {', '.join(silent)}", "every parameter with its help")


class Result(NamedTuple):
    """Outcome of one check of one module."""

    module: str
    check: str
    failure: CheckFailure | None

    @property
    def passed(self) -> bool:
        """Whether the module obeys."""
        return self.failure is None


def all_checks() -> list[Check]:
    """Every check of the suite, the cheap and telling ones first."""
    return [
        check_manifest,
        lifecycle.check_load_unload,
        parameters.check_parameters,
        parameters.check_parameters_refused,
        parameters.check_parameters_written,
        service.check_hostile_requests,
        service.check_full_queue,
        service.check_busy_events,
        lifecycle.check_cancelled_load,
        lifecycle.check_removal_in_flight,
        lifecycle.check_shutdown_in_flight,
        lifecycle.check_crash,
        lifecycle.check_crash_loop,
        service.check_determinism,
        service.check_log,
        service.check_idle,
        misuse.check_misuse,
    ]


def checks_for(examined: Subject) -> list[Check]:
    """Those of the suite that can be made of a module: a program in another language has no calls to misuse."""
    foreign = issubclass(examined.cls, Foreign)
    return [each for each in all_checks() if not (foreign and each is misuse.check_misuse)]


def run_checks(
    what: str | ExtensionClass | Subject, params: Mapping[str, object] | None = None,
    checks: Iterable[Check] | None = None,
) -> Iterator[Result]:  # fmt: skip
    """Examines a module, by name or class, loaded with ``params``; one result as each check ends.

    ``checks`` defaults to all that apply.  Raises :class:`NoSuchModule`; a check that fails is a result, not an error.
    """
    examined = subject(what, params)
    for one in checks_for(examined) if checks is None else checks:
        failure: CheckFailure | None = None
        try:
            one(examined)
        except CheckFailure as exc:
            failure = exc
        yield Result(examined.name, one.__name__, failure)
