from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk import limits
from uxk.core.params import (
    describe_params,
    format_param,
    parse_integer,
    parse_params,
    with_param,
)
from uxk.errors import ParamError
from uxk.uapi.manifest import Params, param


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Disk(Params):
    size: Annotated[int, param(ge=4096, unit="bytes", help="Capacity of the medium")] = 1 << 20
    latency: Annotated[int, param(ge=0, unit="ns", writable=True)] = 10_000
    depth: Annotated[int, param(ge=1, le=64, writable=True)] = 32
    debug: bool = False
    label: Annotated[str, param(pattern="^[a-z]*$", max_length=8, writable=True)] = "disk"
    policy: Literal["greedy", "cost-benefit"] = "greedy"
    colour: Colour = Colour.RED
    zones: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    limit: Annotated[int, param(ge=1, unit="bytes")] | None = None
    note: str | None = None
    rate: float = 1.5
    table: dict[str, int] = {}  # noqa: RUF012


class Needy(Params):
    path: str


class Ordered(Params):
    low: Annotated[int, param(writable=True)] = 1
    high: Annotated[int, param(writable=True)] = 5

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Odd(Params):
    def __post_init__(self) -> None:
        raise RuntimeError("boom")


class Unresolved(Params):
    x: Missing = 1  # type: ignore[name-defined]  # noqa: F821


class Dashed(Params):
    two_words: int = 0


class Mixed(Params):
    x: int | str = 0


def disk(**values: object) -> Disk:
    return parse_params("disk", Disk, values)


def test_defaults_and_typed_values() -> None:
    assert disk() == Disk()
    assert disk(size=8192, zones=(1, 2), colour=Colour.BLUE).zones == (1, 2)


@pytest.mark.parametrize("text", ["1", "y", "Y", "true", "True", "on", "yes"])
def test_linux_true(text: str) -> None:
    assert disk(debug=text).debug is True


@pytest.mark.parametrize("text", ["0", "n", "N", "false", "off", "no"])
def test_linux_false(text: str) -> None:
    assert disk(debug=text).debug is False


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("64KiB", "bytes", 65536), ("1GiB", "bytes", 1 << 30), ("4096", "bytes", 4096),
        ("0x1000", "bytes", 4096), ("1MB", "bytes", 10**6), ("1kB", "bytes", 1000),
        ("64k", "bytes", 65536), ("2M", "bytes", 2 << 20), ("7B", "bytes", 7),
        ("1.5GiB", "bytes", 3 << 29), ("0.5 KiB", "bytes", 512), ("1.5MB", "bytes", 1_500_000),
        ("10us", "ns", 10_000), ("5ms", "ns", 5_000_000), ("2s", "ns", 2 * 10**9),
        ("1500", "ns", 1500), ("1.5us", "ns", 1500), ("2h", "ns", 7200 * 10**9),
        ("3\u00b5s", "ns", 3000), ("-7", "", -7), ("+7", "", 7), ("0", "", 0), ("-0x10", "", -16),
        (str(limits.U64_MAX), "", limits.U64_MAX), (str(-limits.I64_MAX - 1), "", -(1 << 63)),
    ],
)  # fmt: skip
def test_integers(text: str, unit: str, value: int) -> None:
    assert parse_integer(text, unit) == value


@pytest.mark.parametrize(
    ("text", "unit", "reason"),
    [
        ("1.5", "bytes", "not a whole number of bytes"), ("0.3KiB", "bytes", "not a whole number"),
        ("1.0001us", "ns", "not a whole number of ns"), ("64K", "", "takes no unit"),
        ("1kib", "bytes", "did you mean 'KiB'"), ("5parsec", "ns", "unknown unit"),
        ("010", "", "octal"), ("", "", "not an integer"), ("0x", "", "takes no unit"),
        ("1e3", "bytes", "not an integer"), ("1_000", "", "not an integer"),
        ("\u0661\u0662", "", "not an integer"), ("9" * 5000, "", "not an integer"),
        ("99999999PiB", "bytes", "64 bits"), (str(limits.U64_MAX + 1), "", "64 bits"),
        ("-9223372036854775809", "", "64 bits"), ("--1", "", "not an integer"),
    ],
)  # fmt: skip
def test_bad_integers(text: str, unit: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_integer(text, unit)


@given(st.integers(-(1 << 63), limits.U64_MAX))
def test_integer_round_trip(value: int) -> None:
    assert parse_integer(format_param(value)) == value
    assert parse_integer(hex(value)) == value


@given(st.integers(0, 1 << 40), st.sampled_from(["KiB", "MiB", "us", "s", "MB"]))
def test_decimal_sizes_are_exact(thousandths: int, suffix: str) -> None:
    factor = {"KiB": 1 << 10, "MiB": 1 << 20, "us": 10**3, "s": 10**9, "MB": 10**6}[suffix]
    unit = "ns" if suffix.endswith("s") else "bytes"
    text = f"{thousandths // 1000}.{thousandths % 1000:03}{suffix}"
    exact, rest = divmod(thousandths * factor, 1000)
    if rest:
        with pytest.raises(ValueError, match="whole number"):
            parse_integer(text, unit)
    elif exact <= limits.U64_MAX:
        assert parse_integer(text, unit) == exact


def test_conversion_by_type() -> None:
    params = disk(
        policy="cost-benefit", colour="blue", zones="1, 0x2,3", names="a,b", limit="4KiB",
        note="hi", rate="0.25", table='{"a": 1}',
    )  # fmt: skip
    assert params.policy == "cost-benefit"
    assert params.colour is Colour.BLUE
    assert params.zones == (1, 2, 3)
    assert params.names == ("a", "b")
    assert params.limit == 4096
    assert params.note == "hi"
    assert params.rate == 0.25
    assert params.table == {"a": 1}


def test_none_and_unions() -> None:
    assert disk(limit="none").limit is None
    assert disk(limit="(null)", note="(null)").note is None
    assert disk(note="none").note == "none"
    assert parse_params("m", Mixed, {"x": "12"}).x == 12
    assert parse_params("m", Mixed, {"x": "twelve"}).x == "twelve"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": "1"}, ["disk: size='1'", "int >= 4096", "64KiB"]),
        ({"size": 1}, ["size=1", "int >= 4096"]),
        ({"size": "many"}, ["size='many'", "not an integer"]),
        ({"size": True}, ["size=True", "expected int"]),
        ({"depth": "65"}, ["depth='65'", ">= 1, <= 64"]),
        ({"debug": "maybe"}, ["debug='maybe'", "not a boolean", "expected bool"]),
        ({"debug": 1}, ["debug=1", "expected bool"]),
        ({"label": "UPPER"}, ["label='UPPER'", "matching '^[a-z]*$'"]),
        ({"label": "x" * 9}, ["length <= 8"]),
        ({"label": "x" * 100_000}, ["at most 4096"]),
        ({"policy": "gredy"}, ["did you mean 'greedy'", "cost-benefit|greedy"]),
        ({"colour": "green"}, ["red|blue"]),
        ({"zones": "1,x"}, ["zones='1,x'", "array of int"]),
        ({"zones": [1, "x"]}, ["$[1]", "array of int"]),
        ({"rate": "nan"}, ["rate='nan'"]),
        ({"table": "[" * 3000}, ["table="]),
        ({"note": "\udc80"}, ["cannot be sent"]),
        ({"zones": tuple(range(5000))}, ["at most 4096"]),
        ({"zones": [1 << 70]}, ["cannot be sent"]),
        ({"siz": 1}, ["disk: unknown parameter 'siz'", "did you mean 'size'", "known: size"]),
        ({"x" * 1000: 1}, ["unknown parameter", "..."]),
    ],
)
def test_errors_name_everything(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ParamError) as caught:
        parse_params("disk", Disk, values)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 700
    assert caught.value.errno_name == "EINVAL"


def test_required_twice_and_cross_field() -> None:
    with pytest.raises(ParamError, match=r"needy: parameter path is required; expected str"):
        parse_params("needy", Needy, {})
    with pytest.raises(ParamError, match="two_words is given twice"):
        parse_params("d", Dashed, {"two-words": "1", "two_words": "2"})
    with pytest.raises(ParamError, match="low is above high"):
        parse_params("o", Ordered, {"low": "9"})
    with pytest.raises(ParamError, match="RuntimeError: boom"):
        parse_params("odd", Odd, {})
    with pytest.raises(ParamError, match="cannot be read"):
        parse_params("u", Unresolved, {})


def test_with_param() -> None:
    params = disk(depth=4)
    stored = with_param("disk", params, "latency", "5ms\n")
    assert (stored.latency, stored.depth) == (5_000_000, 4)
    assert params.latency == 10_000
    with pytest.raises(ParamError, match="cannot be written") as caught:
        with_param("disk", params, "size", "8192")
    assert caught.value.errno_name == "EACCES"
    with pytest.raises(ParamError, match="depth='0'"):
        with_param("disk", params, "depth", "0")
    with pytest.raises(ParamError, match="low is above high"):
        with_param("o", Ordered(), "low", "6")
    with pytest.raises(ParamError, match="unknown parameter 'dept'"):
        with_param("disk", params, "dept", "1")


def test_describe() -> None:
    infos = {info.name: info for info in describe_params(Disk)}
    size = infos["size"]
    assert (size.type_text, size.default_text, size.unit) == ("int", "1048576", "bytes")
    assert (size.help, size.constraint_text) == ("Capacity of the medium", ">= 4096")
    assert not size.writable and infos["depth"].writable
    assert infos["debug"].default_text == "N"
    assert infos["limit"].type_text == "int or (null)"
    assert (infos["limit"].unit, infos["limit"].constraint_text) == ("bytes", ">= 1")
    assert infos["table"].default_text == "{}"
    assert infos["colour"].default_text == "red"
    assert describe_params(Needy)[0].default_text == "required"
    assert list(infos) == list(Disk.__struct_fields__)


def test_format() -> None:
    assert format_param(frozenset({"b", "a"})) == "a,b"
    assert format_param(("a,b", "c")) == '["a,b","c"]'
    assert format_param((("x",),)) == '[["x"]]'


hostile = (
    st.text(st.sampled_from("019-+.,xKiBnus[]{}\":(null)\x00\n \udc80\u0661"), max_size=9)
    | st.binary(max_size=3) | st.none() | st.integers() | st.floats()
    | st.lists(st.integers() | st.just(object()), max_size=2)
)  # fmt: skip
printable = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    size=st.integers(4096, limits.U64_MAX), debug=st.booleans(),
    policy=st.sampled_from(["greedy", "cost-benefit"]), colour=st.sampled_from(Colour),
    zones=st.lists(st.integers(-(1 << 63), limits.U64_MAX), max_size=9).map(tuple),
    names=st.lists(printable, max_size=9).map(tuple),
    limit=st.none() | st.integers(1, limits.U64_MAX),
    note=st.none() | printable.filter(lambda t: t != "(null)"),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    table=st.dictionaries(printable, st.integers(0, 9), max_size=3),
)  # fmt: skip
def test_text_round_trip(**values: object) -> None:
    params = Disk(**values)  # type: ignore[arg-type]
    texts = {name: format_param(value) for name, value in values.items()}
    assert parse_params("disk", Disk, texts) == params


@given(st.dictionaries(st.sampled_from(Disk.__struct_fields__), hostile))
def test_hostile_values_give_param_errors_only(values: dict[str, object]) -> None:
    try:
        parse_params("disk", Disk, values)
    except ParamError as error:
        message = str(error)
    else:
        message = "disk: good"
    assert message.startswith("disk: ")
