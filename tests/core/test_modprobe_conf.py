from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk import limits
from uxk.core.modprobe_conf import (
    LINES_MAX,
    ModprobeConfig,
    load_dir,
    merge,
    parse,
    parse_options,
)
from uxk.errors import ConfigError
from uxk.uapi.manifest import Softdep

TEXT = r"""
# a comment \
  that goes on: install nothing
options uxk-nvme size=1GiB label="two words" debug
  options uxk_nvme size=2GiB \
    "path=/a b/c"
alias block:nvme* uxk-nvme
alias disk null
alias disk uxk_nvme
blacklist slow-driver
softdep uxk_nvme pre: pci-core a post: stats
softdep uxk_nvme pre: a b
	blacklist	tabbed
"""


def test_parse() -> None:
    config = parse(TEXT, "x.conf")
    assert config == ModprobeConfig(
        options={"uxk_nvme": {"size": "2GiB", "label": "two words", "debug": "Y", "path": "/a b/c"}},
        aliases=(("block:nvme*", "uxk_nvme"), ("disk", "uxk_nvme")),
        blacklist=("slow_driver", "tabbed"),
        softdeps={"uxk_nvme": Softdep(("pci_core", "a", "b"), ("stats",))},
    )
    assert parse("", "x") == ModprobeConfig()
    assert parse("options a b=1\r\nblacklist c\r\n", "dos.conf").blacklist == ("c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ninstall m /bin/true", "x.conf:2: 'install' is not supported: uxk runs no commands"),
        ("remove m /bin/true", "x.conf:1: 'remove' is not supported"),
        ("weakdep a b", "initramfs"),
        ("option m a=1", "unknown word 'option' (did you mean 'options'?)"),
        ("options", "module name ''"),
        ("options m", "needs NAME=VALUE"),
        ("options M a=1", "name 'M'"),
        ("options m =1", "'=1' is not NAME=VALUE"),
        ('options m a=1 \\\n b="open', "x.conf:1: 'b=\"open'"),
        ("#\\\n\n\nblacklist a b", "x.conf:4: 'blacklist a b': expected one MODULE"),
        ('options m a="b"c', "'a=\"b\"c'"),
        ('options m a="b\x00"', "control character"),
        ("alias a", "expected PATTERN MODULE"),
        ("alias a b c", "expected PATTERN MODULE"),
        ("alias a ../b", "name '../b'"),
        ("blacklist", "expected one MODULE"),
        ("softdep", "module name ''"),
        ("softdep m", "needs 'pre: MODULE'"),
        ("softdep m pre:", "needs 'pre: MODULE'"),
        ("softdep m a pre: b", "'a': expected 'pre:' or 'post:' before it"),
        ("x" * 100_000, "unknown word"),
        ("\n" * (LINES_MAX + 1), "lines; at most"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.conf")
    assert str(caught.value).startswith("x.conf:")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_load_dir_later_wins(tmp_path: Path) -> None:
    (tmp_path / "10-a.conf").write_text("options m a=1 b=1\nalias x m\n")
    (tmp_path / "20-b.conf").write_text("options m a=2\nalias x n\nblacklist m\n")
    (tmp_path / "notes.txt").write_text("not read")
    config = load_dir(tmp_path)
    assert config.options == {"m": {"a": "2", "b": "1"}}
    assert config.aliases == (("x", "n"),)
    assert config.blacklist == ("m",)


def test_load_dir_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing: cannot be read") as caught:
        load_dir(tmp_path / "missing")
    assert caught.value.errno_name == "ENOENT"
    bad = tmp_path / "a.conf"
    bad.write_bytes(b"options m a=\xff")
    with pytest.raises(ConfigError, match=r"a\.conf: no UTF-8 text"):
        load_dir(tmp_path)
    bad.write_bytes(b"#" * (limits.FRAME_MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"a\.conf: larger than"):
        load_dir(tmp_path)
    bad.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"a\.conf:1: unknown word"):
        load_dir(tmp_path)


def test_a_large_file_is_read_in_linear_time() -> None:
    lines = "".join(f"softdep m pre: a{i}\nalias x{i} m\n" for i in range(10_000))
    config = parse(lines, "x")
    assert (len(config.aliases), len(config.softdeps["m"].pre)) == (10_000, 10_000)


names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
values = st.text(st.sampled_from("ab =#\t'\\,\u00e9\u2028\x85"), max_size=6)


@given(st.dictionaries(names, st.tuples(values, st.sampled_from(['{}="{}"', '"{}={}"'])), min_size=1, max_size=5))
def test_options_are_read_as_written(written: dict[str, tuple[str, str]]) -> None:
    text = " ".join(form.format(name, value) for name, (value, form) in written.items())
    options = {name: value for name, (value, _) in written.items()}
    assert parse_options(text, "x") == options
    assert parse(f"options m {text}\n", "x").options == {"m": options}


configs = st.builds(
    ModprobeConfig,
    options=st.dictionaries(st.sampled_from("ab"), st.dictionaries(names, values, max_size=2)),
    aliases=st.dictionaries(names, names, max_size=3).map(lambda d: tuple(d.items())),
    blacklist=st.lists(names, max_size=3, unique=True).map(tuple),
)


@given(configs, configs, configs)
def test_merge_is_associative_and_has_a_neutral(a: ModprobeConfig, b: ModprobeConfig, c: ModprobeConfig) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, ModprobeConfig()) == a == merge(ModprobeConfig(), a)


@given(st.text(st.sampled_from('options alias\\\n"=#ab \t\x00:'), max_size=60))
def test_hostile_text_gives_config_errors_only(text: str) -> None:
    try:
        parse(text, "x")
    except ConfigError as error:
        message = str(error)
    else:
        message = "x: good"
    assert message.startswith("x:")
