from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.bind import matches, matching, modalias, parse_modalias, specificity
from uxk.errors import UsageError
from uxk.uapi.manifest import Bind, Manifest

DISK = {"class": "block", "vendor": "uxk7", "model": "Null"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"class": "block"}, True),
        ({"class": "block", "vendor": "uxk*"}, True),
        ({"class": "block", "vendor": "uxk[0-9]", "model": "N?ll"}, True),
        ({"class": "char"}, False),
        ({"class": "block", "serial": "*"}, False),
        ({"model": "null"}, False),
        ({"model": "Nul"}, False),
    ],
)
def test_matches(rule: dict[str, str], expected: bool) -> None:
    assert matches(Bind(rule), DISK) is expected


def test_the_most_specific_first_then_by_name() -> None:
    def module(name: str, *rules: dict[str, str]) -> Manifest:
        return Manifest(name=name, binds=tuple(map(Bind, rules)))

    two_keys = module("z_two", {"class": "*", "vendor": "*"})
    literal = module("y_literal", {"class": "block"}, {"class": "b*"})
    pattern_b = module("b_pattern", {"class": "bl*"})
    pattern_a = module("a_pattern", {"class": "bl*"})
    other = module("other", {"class": "net"})
    unbound = module("unbound")
    found = matching([other, pattern_b, literal, unbound, pattern_a, two_keys], DISK)
    assert found == [two_keys, literal, pattern_a, pattern_b]
    assert specificity(Bind({"class": "bl*"})) == (1, 2)


def test_modalias_text() -> None:
    assert modalias({"vendor": "x", "class": "block"}) == "uxk:class=block;vendor=x"
    assert modalias({"class": "b*"}) == "uxk:class=b*"
    assert modalias({"a b": "c;d=e%"}) == "uxk:a%20b=c%3Bd%3De%25"
    assert parse_modalias("uxk:") == {}


@pytest.mark.parametrize(
    "text",
    ["", "pci:v1", "uxk:a", "uxk:=b", "uxk:a=b;", "uxk:a=b=c", "uxk:a=1;a=2", "uxk:a=%ff",
     "uxk:a=1;%61=2", "uxk:" + "a" * 5000],
)  # fmt: skip
def test_bad_modalias(text: str) -> None:
    with pytest.raises(UsageError, match="modalias"):
        parse_modalias(text)


def test_what_has_no_modalias() -> None:
    for properties in ({"": "x"}, {"a": "\udc80"}):
        with pytest.raises(UsageError, match="modalias"):
            modalias(properties)


text = st.text(st.sampled_from("ab;=%*[ \u00e9\n"), max_size=5)


@given(st.dictionaries(text.filter(bool), text, max_size=4))
def test_modalias_round_trip(properties: dict[str, str]) -> None:
    written = modalias(properties)
    assert parse_modalias(written) == properties
    assert " " not in written and "\n" not in written


@given(st.dictionaries(text, st.text("ab", max_size=4)), st.text("ab*?[]!-", max_size=8))
def test_any_pattern_is_harmless(properties: dict[str, str], pattern: str) -> None:
    assert matches(Bind({"k": pattern}), properties | {"k": "ab"}) in (True, False)
    assert matches(Bind(dict.fromkeys(properties, "*")), properties)
