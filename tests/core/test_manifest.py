from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk import limits
from uxk.core.budget import memory_bytes, memory_terms, memory_text
from uxk.core.manifest import (
    DEFAULT_RIGHTS,
    RIGHTS,
    CapabilityRequest,
    canonical,
    check_manifest,
    manifest_problems,
    parse_capability,
)
from uxk.core.suggest import did_you_mean, distance
from uxk.errors import ManifestError
from uxk.uapi.manifest import (
    Bind,
    Budget,
    Ioctl,
    Manifest,
    MemoryParam,
    Params,
    RestartPolicy,
    Softdep,
    Watchdog,
    param,
)


class Good(Params):
    size: Annotated[int, param(ge=1, unit="bytes", writable=True)] = 1
    path: str = ""


class BadDefault(Params):
    size: Annotated[int, param(ge=4096)] = 1


class Reserved(Params):
    instance: int = 0
    placement: str = ""


class UnitOnText(Params):
    text: Annotated[str, param(unit="bytes")] = ""


class Thawed(Params, frozen=False):  # type: ignore[misc]
    x: int = 0


class Unresolved(Params):
    x: Missing = 1  # type: ignore[name-defined]  # noqa: F821


def broken_factory() -> list[int]:
    raise RuntimeError("boom")


class Factory(Params):
    items: list[int] = msgspec.field(default_factory=broken_factory)


class Custom(Params):
    z: complex = 1j


class CustomRequired(Params):
    z: complex


class Every(Params):
    a: Any = None
    b: dict[int, list[tuple[int, str]]] = {}  # noqa: RUF012
    c: frozenset[bytes] = frozenset()
    d: int | list[str] | None = None
    e: float = 0.5


class Reply(msgspec.Struct):
    x: int


def test_a_full_manifest_is_good() -> None:
    manifest = Manifest(
        name="uxk-null_0", version="1.2.3-rc1+g1f", author="A. Nöther", license="MIT", kind="both",
        driver_class="block", params=Good, depends=("core",), softdep=Softdep(("a",), ("b",)),
        alias=("block:null*", "nul[l-z]"), binds=(Bind({"class": "block"}),),
        capabilities=("kmsg:read", "sysctl:vm/*:write", "device:null0"),
        ioctls=(Ioctl("get", 1, None, Reply), Ioctl("set", 2, dict[str, int])),
    )  # fmt: skip
    check_manifest(manifest, where="null.py")
    assert manifest_problems(Manifest(name="m")) == []
    assert manifest_problems(Manifest(name="m", params=Every)) == []


def test_canonical() -> None:
    assert canonical("a-b_c-d") == "a_b_c_d"


class Sizes(Params):
    size: Annotated[int, param(ge=0, unit="bytes")] = 5000
    grows: Annotated[int, param(unit="bytes", writable=True)] = 0
    other: Annotated[int, param(unit="bytes")] = -5
    count: int = 1
    name: str = ""
    fast: bool = False


@pytest.mark.parametrize(
    ("names", "wanted"), [((), 100), (("size",), 100 + 8192), (("other",), 100), (("size", "other"), 100 + 8192)]
)
def test_memory_params_come_on_top_in_whole_pages(names: tuple[str, ...], wanted: int) -> None:
    manifest = Manifest(name="m", params=Sizes, budget=Budget(memory_bytes=100, memory_params=names))
    check_manifest(manifest, where="here")
    assert memory_bytes(manifest, Sizes()) == wanted


@pytest.mark.parametrize(
    ("part", "given", "extra", "text"),
    [
        (MemoryParam("size"), {}, 8192, "size"),
        (MemoryParam("size", {"name": "ram"}), {}, 0, "size when name=ram"),
        (MemoryParam("size", {"name": "ram"}), {"name": "ram"}, 8192, "size when name=ram"),
        (MemoryParam("size", {"name": "ram*", "fast": "Y"}), {"name": "ram2"}, 0, "size when name=ram* fast=Y"),
        (MemoryParam("size", {"fast": "Y"}), {"fast": True}, 8192, "size when fast=Y"),
        (MemoryParam("size", {"count": "1"}, times=5, per=8), {}, 4096, "size*5/8 when count=1"),
        (MemoryParam("size", times=5, per=4), {"size": 1 << 40}, 5 << 38, "size*5/4"),
        (MemoryParam("other", per=7), {}, 0, "other/7"),
    ],
)
def test_memory_may_depend_on_other_parameters(part: MemoryParam, given: dict[str, Any], extra: int, text: str) -> None:
    manifest = Manifest(name="m", params=Sizes, budget=Budget(memory_bytes=4096, memory_params=("other", part)))
    check_manifest(manifest, where="here")
    assert memory_bytes(manifest, Sizes(**given)) == 4096 + extra
    assert memory_text(part) == text
    terms = memory_terms(manifest, Sizes(**given))
    assert terms[:2] == ["memory_bytes=4096", "other=0"] and len(terms) == (3 if extra or not part.when else 2)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "0 characters"),
    ({"name": "x" * 56}, "expected 1 to 55"),
    ({"name": "x" * 1_000_000}, "1000000 characters"),
    ({"name": "-rf"}, "beginning with"),
    ({"name": "Upper"}, "expected a-z"),
    ({"name": "new\n"}, "expected a-z"),
    ({"name": "../etc"}, "expected a-z"),
    ({"name": 5}, "name 5 is no text"),
    ({"version": ""}, "version"),
    ({"version": "1 2"}, "version"),
    ({"kind": "demon"}, "kind: Invalid enum value"),
    ({"driver_class": "block/x"}, "driver_class"),
    ({"description": "two\nlines"}, "description"),
    ({"author": "\udc80"}, "author"),
    ({"license": "x" * 5000}, "license"),
    ({"alias": ("a b",)}, "alias 'a b'"),
    ({"depends": "core"}, "depends: Expected"),
    ({"depends": ("m",)}, "'m' is the module itself"),
    ({"depends": ("a-b", "a_b")}, "'a_b' is named twice"),
    ({"depends": ("a b",)}, "expected a module's name"),
    ({"softdep": Softdep(post=("m",))}, "softdep post: 'm' is the module itself"),
    ({"depends": tuple(f"m{i}" for i in range(300))}, "300 entries"),
    ({"binds": (Bind({}),)}, "every device"),
    ({"binds": (Bind({"": "x"}),)}, "none empty"),
    ({"binds": (Bind({"a": "\n"}),)}, "printable"),
    ({"binds": (Bind({"a": 1}),)}, "binds: Expected"),  # type: ignore[dict-item]
    ({"capabilities": ("kmgs:read",)}, "did you mean 'kmsg'"),
    ({"budget": Budget(memory_bytes=-1)}, "budget.memory_bytes is -1"),
    ({"budget": Budget(memory_params=("sise",)), "params": Sizes}, "'sise' is no parameter (did you mean 'size'?)"),
    (
        {"budget": Budget(memory_params=("name",)), "params": Sizes},
        "'name' is str without a unit, expected an int in bytes",
    ),
    (
        {"budget": Budget(memory_params=("count",)), "params": Sizes},
        "'count' is int without a unit, expected an int in bytes",
    ),
    ({"budget": Budget(memory_params=("grows",)), "params": Sizes}, "'grows' is writable; memory is granted once"),
    ({"budget": Budget(memory_params=("size", "size")), "params": Sizes}, "a parameter is named twice"),
    ({"budget": Budget(memory_params="size"), "params": Sizes}, "budget: Expected `array`"),  # type: ignore[arg-type]
    (
        {"budget": Budget(memory_params=(MemoryParam("size", {"nam": "x"}),)), "params": Sizes},
        "budget.memory_params: 'nam' is no parameter (did you mean 'name'?)",
    ),
    (
        {"budget": Budget(memory_params=(MemoryParam("size", {"grows": "1"}),)), "params": Sizes},
        "'grows' is writable; memory is granted once",
    ),
    ({"budget": Budget(memory_params=(MemoryParam("size", per=0),)), "params": Sizes}, "'size': per is 0, expected 1"),
    ({"budget": Budget(memory_params=(MemoryParam("size", times=-1),)), "params": Sizes}, "'size': times is -1"),
    ({"budget": Budget(memory_params=(MemoryParam("size", times=1 << 40),)), "params": Sizes}, "times is 10995"),
    ({"budget": Budget(memory_params=(MemoryParam("size", {"name": 5}),)), "params": Sizes}, "budget: "),  # type: ignore[dict-item]
    ({"budget": Budget(memory_params=("size", MemoryParam("size"))), "params": Sizes}, "a parameter is named twice"),
    ({"budget": Budget(queue_depth=48)}, "expected a power of two"),
    ({"budget": Budget(queue_depth=1)}, "queue_depth is 1, expected 2 to 65536"),
    ({"budget": Budget(queue_depth=1 << 17)}, "queue_depth is 131072"),
    ({"budget": Budget(cpu_ppm=0)}, "cpu_ppm is 0"),
    ({"budget": Budget(cpu_ppm=1_000_001)}, "cpu_ppm"),
    ({"budget": Budget(log_burst=True)}, "budget: Expected `int`, got `bool`"),
    ({"budget": None}, "budget: Expected"),
    ({"restart": RestartPolicy(max_restarts=-1)}, "max_restarts is -1"),
    ({"restart": RestartPolicy(period_ns=0)}, "period_ns is 0"),
    (
        {"restart": RestartPolicy(backoff_ns=5, backoff_max_ns=4)},
        "backoff_ns is 5, expected 0 to 4",
    ),
    ({"watchdog": Watchdog(heartbeat_ns=0)}, "heartbeat_ns is 0"),
    ({"watchdog": Watchdog(timeouts_max=0)}, "timeouts_max is 0"),
    ({"ready_timeout_ns": 0}, "ready_timeout_ns is 0"),
    ({"turn_cost_ns": -1}, "turn_cost_ns is -1"),
    ({"state_version": 0}, "state_version is 0"),
    ({"params": BadDefault}, "'size': its default 1 is not int >= 4096"),
    ({"params": Reserved}, "'instance': the name is reserved"),
    ({"params": Reserved}, "'placement': the name is reserved"),
    ({"params": UnitOnText}, "needs an int"),
    ({"params": Thawed}, "frozen"),
    ({"params": Unresolved}, "cannot be read"),
    ({"params": Factory}, "boom"),
    ({"params": Custom}, "parameter z cannot be read"),
    ({"params": CustomRequired}, "'z': complex is no type that msgspec can read"),
    ({"params": dict}, "expected a subclass of Params"),
    ({"params": Good()}, "expected a subclass of Params"),
    ({"ioctls": (Ioctl("a", 1), Ioctl("b", 1))}, "number 1 is already 'a'"),
    ({"ioctls": (Ioctl("a", 1), Ioctl("a", 2))}, "used twice"),
    ({"ioctls": (Ioctl("a", -1),)}, "number -1"),
    ({"ioctls": (Ioctl("a", True),)}, "number True"),
    ({"ioctls": (Ioctl("A!", 1),)}, "expected an Ioctl"),
    ({"ioctls": ("a",)}, "expected an Ioctl"),
    ({"ioctls": [1]}, "expected a tuple"),
    ({"ioctls": (Ioctl("a", 1, 5),)}, "no type"),
]


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_bad_manifests(fields: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {"name": "m"} | fields
    manifest = Manifest(**values)
    with pytest.raises(ManifestError) as caught:
        check_manifest(manifest, where="m.py")
    assert str(caught.value).startswith("m.py: module '")
    assert words in str(caught.value)
    assert caught.value.errno_name == "ENOEXEC"
    assert len(str(caught.value)) < 2000


def test_all_problems_are_listed_at_once() -> None:
    manifest = Manifest(name="m", version="", depends=("m",), budget=Budget(cpu_ppm=0))
    assert len(manifest_problems(manifest)) == 3


def test_not_even_a_manifest() -> None:
    with pytest.raises(ManifestError, match="expected Manifest"):
        check_manifest("x", where="x.py")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kmsg:read", ("kmsg", "*", ("read",))),
        ("kmsg", ("kmsg", "*", ("read",))),
        ("kmsg:*:write,read", ("kmsg", "*", ("read", "write"))),
        ("sysctl:vm/*:write", ("sysctl", "vm/*", ("write",))),
        ("device:null0", ("device", "null0", ("submit",))),
        ("lock:table:lock,grant,lock", ("lock", "table", ("lock", "grant"))),
    ],
)
def test_capabilities(text: str, expected: tuple[str, str, tuple[str, ...]]) -> None:
    assert parse_capability(text) == CapabilityRequest(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "device", "device:", "device::read", "device:a b", "device:a:", "device:a:read:x",
        "kmsg:", "kmsg:read:write", "device:a:reed", "device:a:read,", "root:x", "device:\n",
        "device:" + "x" * 5000,
    ],
)  # fmt: skip
def test_bad_capabilities(text: Any) -> None:
    with pytest.raises(ManifestError, match="capability"):
        parse_capability(text)


@given(
    st.sampled_from(sorted(DEFAULT_RIGHTS)),
    st.text(st.sampled_from("abz09_/*?[]-."), min_size=1, max_size=9),
    st.lists(st.sampled_from(RIGHTS), min_size=1),
)
def test_capability_round_trip(kind: str, target: str, words: list[str]) -> None:
    target = "*" if kind == "kmsg" else target
    request = parse_capability(f"{kind}:{target}:{','.join(words)}")
    assert request == (kind, target, tuple(sorted(set(words), key=RIGHTS.index)))


# --- suggestions -----------------------------------------------------------------------------------


def test_suggestions() -> None:
    assert did_you_mean("siez", ["depth", "size"]) == " (did you mean 'size'?)"
    assert did_you_mean("QUEUE-DEPTH", ["queue_depth"]) == " (did you mean 'queue_depth'?)"
    assert did_you_mean("zzzz", ["size"]) == ""
    assert did_you_mean("size", ["size"]) == ""
    assert did_you_mean("", ["a"]) == ""
    assert did_you_mean("x", ["y"]) == ""
    assert did_you_mean("x" * 1000, ["x" * 999]) == ""
    assert did_you_mean("bar", {"baz", "bat"}) == " (did you mean 'bat'?)"


def slow_distance(a: str, b: str) -> int:
    """Optimal string alignment by its definition."""
    if not a or not b:
        return len(a) + len(b)
    best = min(
        slow_distance(a[:-1], b) + 1,
        slow_distance(a, b[:-1]) + 1,
        slow_distance(a[:-1], b[:-1]) + (a[-1] != b[-1]),
    )
    if len(a) > 1 and len(b) > 1 and a[-1] == b[-2] and a[-2] == b[-1]:
        best = min(best, slow_distance(a[:-2], b[:-2]) + 1)
    return best


@given(st.text("ab", max_size=5), st.text("abc", max_size=5), st.integers(0, 6))
def test_distance_by_definition(a: str, b: str, limit: int) -> None:
    assert distance(a, b, limit) == min(slow_distance(a, b), limit + 1)


def test_limits_of_defaults() -> None:
    assert limits.QUEUE_DEPTH_DEFAULT & (limits.QUEUE_DEPTH_DEFAULT - 1) == 0
