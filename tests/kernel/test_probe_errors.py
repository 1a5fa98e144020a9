"""What a failed load says: the module's own words and number if it has refused, kind and place of anything else."""

from __future__ import annotations

import errno

import pytest

import uxk
from uxk.kernel.devices import DeviceRegistry


class Refusing(uxk.Extension):
    """Raises what it is given."""

    manifest = uxk.Manifest(name="pe-refusing", license="MIT", ready="explicit", capabilities=("device:*:submit",))
    error: Exception | None = None

    async def run(self, ctx: uxk.Context) -> None:
        if self.error is not None:
            raise self.error
        await ctx.open_device("nulll0")


@pytest.mark.parametrize(
    ("error", "text", "number", "refusal"),
    [
        (uxk.UsageError("port=7: taken", errno=errno.EADDRINUSE), "pe_refusing: port=7: taken", "EADDRINUSE", True),
        (uxk.ParamError("pe_refusing: port=x"), "pe_refusing: port=x", "EINVAL", True),
        (uxk.UxkError("odd", errno=errno.ENOSPC), "pe_refusing: UxkError in run: odd", "ENOSPC", False),
        (PermissionError(errno.EACCES, "no"), "pe_refusing: PermissionError in run: [Errno 13] no", "EACCES", False),
        (ValueError("odd"), "pe_refusing: ValueError in run: odd", "ENODEV", False),
        (None, "pe_refusing: RequestError in run: Open: no device 'nulll0' (did you mean 'null0'?)", "ENODEV", False),
    ],
)
async def test_cause_and_number(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, text: str, number: str, refusal: bool
) -> None:
    monkeypatch.setattr(Refusing, "error", error)
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("null")
        with pytest.raises(uxk.ProbeError) as caught:
            await kernel.insmod(Refusing)
    assert (str(caught.value), caught.value.errno_name, caught.value.refusal) == (text, number, refusal)


async def test_a_device_that_is_not_there_is_guessed() -> None:
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("null")
        assert isinstance(kernel.devices, DeviceRegistry)
        with pytest.raises(uxk.UsageError, match=r"no device 'nul0' \(did you mean 'null0'\?\)"):
            kernel.devices.get("nul0")
