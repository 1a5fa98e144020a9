"""Conformance checks of parameters: their declared types and constraints tell the truth."""

from __future__ import annotations

import errno
from typing import Final

from uxk import errors
from uxk.core.params import describe_params, format_param
from uxk.errors import ParamError, ProbeError, TreeError, UxkError
from uxk.kernel.kernel import Kernel
from uxk.testing.extremes import extremes
from uxk.testing.kernels import Ledger, unload_all
from uxk.testing.subject import (
    Subject,
    about,
    broken,
    check,
    expect,
    expect_healthy,
    expect_no_residue,
    patience_ns,
    session,
)  # fmt: skip
from uxk.testing.traffic import ordinary

REQUESTS: Final = 6


@check
def check_parameters(examined: Subject) -> None:
    """Every value that a parameter's declaration admits works, or is refused on purpose and without a trace."""

    async def body(kernel: Kernel) -> None:
        for one in extremes(examined.manifest.params):
            for value in one.good:
                await _try(examined, kernel, one.name, value)

    session(examined, body)


async def _try(examined: Subject, kernel: Kernel, name: str, value: object) -> None:
    given = f"{name}={_brief(value)}"
    try:
        module = await examined.load(kernel, **{name: value})
    except UxkError as exc:
        expect(_on_purpose(exc), f"{given}: {exc}", "a live module, or a refusal by an error of uxk.errors")
        await unload_all(kernel)
        expect_no_residue(kernel)
        return
    if isinstance(value, int):
        now = getattr(module.params, name)
        expect(now == value, f"{given} arrived as {now!r}", "the value that was given")
    ledger = Ledger(kernel, examined.name)
    ledger.submit(ordinary(min(REQUESTS, examined.manifest.budget.queue_depth)))
    await ledger.settle(patience_ns(examined.manifest))
    with about(given):
        expect(not ledger.problems(), ledger.problems()[:3], "one answer to every request")
        expect_healthy(examined, kernel)
    ledger.port.close()
    await unload_all(kernel)


def _on_purpose(exc: UxkError) -> bool:
    """Whether a load was refused by a decision, not by an accident such as ZeroDivisionError in ``setup``."""
    if not isinstance(exc, ProbeError) or type(exc) is not ProbeError:
        return not isinstance(exc, ProbeError)
    if exc.refusal:
        return True
    words = str(exc).split(": ", 2)
    kind = getattr(errors, words[1].split(" ")[0], None) if len(words) > 1 else None
    return isinstance(kind, type) and issubclass(kind, UxkError)


@check
def check_parameters_refused(examined: Subject) -> None:
    """Values of the wrong type or out of range, and unknown names, are refused by a ParamError that names them."""

    async def body(kernel: Kernel) -> None:
        bad = [(one.name, value) for one in extremes(examined.manifest.params) for value in one.bad]
        for name, value in [*bad, ("no_such_parameter", 1)]:
            try:
                await examined.load(kernel, **{name: value})
            except ParamError as exc:
                text = str(exc)
                named = name in text and examined.manifest.name in text
                expect(named, f"{name}={_brief(value)}: {text}", "a message that names module and parameter")
            else:
                broken(f"{name}={_brief(value)} accepted", "a ParamError")
            await unload_all(kernel)
            expect_no_residue(kernel)

    session(examined, body)


@check
def check_parameters_written(examined: Subject) -> None:
    """Through sysfs, a writable parameter takes its extremes and refuses others; the rest cannot be written."""

    async def body(kernel: Kernel) -> None:
        await examined.load(kernel)
        types = {info.name: info.type_text for info in describe_params(examined.manifest.params)}
        for one in extremes(examined.manifest.params):
            path = f"/sys/module/{examined.name}/parameters/{one.name}"
            expect(kernel.sysfs.exists(path), f"no {path}", "every parameter in sysfs")
            for value in one.good if one.writable else []:
                await _write(examined, kernel, path, format_param(value))
                if isinstance(value, str) == types[one.name].startswith("str"):  # not another way to write it
                    now = kernel.sysfs.read(path)
                    expect(now == format_param(value), f"{path}: {now!r}", f"{value!r}, which was written")
            before = kernel.sysfs.read(path)
            texts = [bad for bad in one.bad if isinstance(bad, str)] if one.writable else [before]
            if one.writable and not types[one.name].startswith("str"):  # any number is a good text
                texts += [str(bad) for bad in one.bad if isinstance(bad, int)]
            for text in texts:
                _refused(kernel, path, text, one.writable)
            expect(kernel.sysfs.read(path) == before, kernel.sysfs.read(path), f"{path} unchanged: {before}")
        expect_healthy(examined, kernel)

    session(examined, body)


async def _write(examined: Subject, kernel: Kernel, path: str, text: str) -> None:
    """A good value: it is taken, and the module serves on with it."""
    kernel.sysfs.write(path, text)
    ledger = Ledger(kernel, examined.name)
    ledger.submit(ordinary(min(REQUESTS, examined.manifest.budget.queue_depth)))
    await ledger.settle(patience_ns(examined.manifest))
    with about(f"{path} = {text!r}"):
        expect(not ledger.problems(), ledger.problems()[:3], "one answer to every request")
        expect_healthy(examined, kernel)


def _refused(kernel: Kernel, path: str, text: str, writable: bool) -> None:
    try:
        kernel.sysfs.write(path, text)
    except TreeError as exc:
        good = exc.errno in (errno.EINVAL, errno.ERANGE) if writable else exc.errno in (errno.EACCES, errno.EPERM)
        expect(good, f"{path} = {text!r}: {exc}", "EINVAL" if writable else "EACCES")
    else:
        broken(f"{path} = {text!r} accepted", "EINVAL" if writable else "EACCES")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
