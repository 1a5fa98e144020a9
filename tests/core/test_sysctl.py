"""Sysctls: types, ranges, names, history, roll-back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk import limits
from uxk.core import sysctl as sysctl_module
from uxk.core.sysctl import Sysctl, SysctlState, SysctlTable, canonical_name
from uxk.core.tree import Tree
from uxk.errors import TreeError


def fails(number: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TreeError) as caught:
        function(*args, **kwargs)
    assert caught.value.errno == number, caught.value
    return str(caught.value)


def table() -> tuple[Tree, SysctlTable]:
    tree = Tree()
    sysctls = SysctlTable(tree)
    sysctls.register(Sysctl("vm/dirty_ratio", 20, minimum=0, maximum=100))
    sysctls.register(Sysctl("vm.compact", False))
    sysctls.register(Sysctl("kernel/printk", (4, 4, 1, 7), minimum=0, maximum=7))
    sysctls.register(Sysctl("blk/scheduler", "none", choices=("none", "deadline")))
    sysctls.register(Sysctl("kernel/hostname", "uxk"))
    sysctls.register(Sysctl("kernel/ostype", "uxk", read_only=True))
    return tree, sysctls


def test_values_are_read_and_written_both_ways() -> None:
    tree, sysctls = table()
    assert tree.read("/proc/sys/vm/dirty_ratio") == "20"
    tree.write("/proc/sys/vm/dirty_ratio", "0x1F\n")
    assert sysctls.get("vm.dirty_ratio") == 31
    tree.write("/proc/sys/vm/compact", "yes")
    assert (sysctls.get("vm/compact"), tree.read("/proc/sys/vm/compact")) == (True, "1")
    tree.write("/proc/sys/kernel/printk", " 7 0x4\t1 7 ")
    assert sysctls.get("kernel.printk") == (7, 4, 1, 7)
    assert tree.read("/proc/sys/kernel/printk") == "7\t4\t1\t7"
    sysctls.set("blk/scheduler", "deadline")
    assert tree.read("/proc/sys/blk/scheduler") == "deadline"
    sysctls.set("kernel/hostname", "")
    assert tree.read("/proc/sys/kernel/hostname") == ""
    assert "vm.dirty_ratio" in sysctls
    assert "vm" not in sysctls
    assert len(sysctls) == len(sysctls.names()) == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vm/dirty_ratio", text)
        for text in ("101", "-1", "", "x", "1.5", "1e3", "010", "1_0", "٣", "0x", "9" * 4000, "1 2")
    ]
    + [("vm/compact", text) for text in ("", "2", "maybe", "1 1")]
    + [("kernel/printk", text) for text in ("", "1 2 3", "1 2 3 4 5", "1 2 3 8", "1,2,3,4", "1 " * 2000)]
    + [("blk/scheduler", text) for text in ("", "cfq", "none ")]
    + [("kernel/hostname", text) for text in ("a\nb", "\0", "\x1b[2J")],
)  # fmt: skip
def test_bad_text_is_refused_and_changes_nothing(name: str, text: str) -> None:
    tree, sysctls = table()
    before = sysctls.snapshot()
    message = fails(errno.EINVAL, tree.write, f"/proc/sys/{name}", text)
    assert message.startswith(f"/proc/sys/{name}: ")
    assert message.count(name) == 1
    assert "expected" in message
    assert message.isprintable()
    assert sysctls.snapshot() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vm/dirty_ratio", 101),
        ("vm/dirty_ratio", True),
        ("vm/dirty_ratio", "20"),
        pytest.param("vm/dirty_ratio", 10**5000, id="huge"),
        ("vm/compact", 1),
        ("kernel/printk", (1, 2, 3)),
        ("kernel/printk", (1, 2, 3, True)),
        ("kernel/printk", [1, 2, 3, 4]),
        ("kernel/hostname", "\ud800"),
        ("kernel/hostname", "x" * limits.SHOW_MAX_BYTES),
    ],
)
def test_bad_values_are_refused(name: str, value: Any) -> None:
    _, sysctls = table()
    fails(errno.EINVAL, sysctls.set, name, value)
    assert sysctls.entry(name).writes == 0


def test_errors_name_value_and_range_and_suggest() -> None:
    tree, sysctls = table()
    message = fails(errno.EINVAL, tree.write, "/proc/sys/vm/dirty_ratio", "101")
    assert message == "/proc/sys/vm/dirty_ratio: '101', expected an integer in 0..100 [EINVAL]"
    assert "did you mean 'vm/dirty_ratio'" in fails(errno.ENOENT, sysctls.get, "vm/dirty_ration")
    fails(errno.ENOENT, sysctls.entry, "x" * 10_000)
    fails(errno.EACCES, sysctls.set, "kernel/ostype", "linux")
    fails(errno.EACCES, tree.write, "/proc/sys/kernel/ostype", "linux")
    fails(errno.EACCES, tree.write, "/proc/sys/vm/compact", "1", root=False)


@pytest.mark.parametrize(
    "spec",
    [
        Sysctl("a", 5, minimum=6),
        Sysctl("a", 5, minimum=6, maximum=4),
        Sysctl("a", "x", choices=("y",)),
        Sysctl("a", ()),
        Sysctl("a", (1,) * 65),
        Sysctl("a", 1.5),  # type: ignore[type-var]
        Sysctl("", 1),
        Sysctl("a/../b", 1),
        Sysctl("a//b", 1),
    ],
)
def test_contradictory_specifications_are_refused(spec: Sysctl[Any]) -> None:
    tree = Tree()
    sysctls = SysctlTable(tree)
    fails(errno.EINVAL, sysctls.register, spec)
    assert (len(sysctls), tree.kobject_count) == (0, 1)


def test_registering_twice_bounds_and_no_residue(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree()
    sysctls = SysctlTable(tree)
    entry = sysctls.register(Sysctl("vm.x.y", 1))
    entry.value += 1
    fails(errno.EEXIST, sysctls.register, Sysctl("vm/x/y", 1))
    fails(errno.EEXIST, sysctls.register, Sysctl("vm/x", 1))
    fails(errno.ENOTDIR, sysctls.register, Sysctl("vm/x/y/z", 1))
    monkeypatch.setattr(sysctl_module, "SYSCTLS_MAX", 1)
    fails(errno.ENOSPC, sysctls.register, Sysctl("z", 1))
    assert tree.read("/proc/sys/vm/x/y") == "2"
    assert (tree.attribute_count, len(sysctls)) == (1, 1), "what was refused left nothing"


def test_history_tells_who_wrote_last() -> None:
    tree, sysctls = table()
    assert sysctls.snapshot()["vm/dirty_ratio"] == SysctlState(20, 20, "", 0)
    tree.write("/proc/sys/vm/dirty_ratio", "5", writer="tuner")
    sysctls.set("vm/dirty_ratio", 5)
    assert sysctls.snapshot()["vm/dirty_ratio"] == SysctlState(5, 20, "kernel", 2)
    tree.write("/proc/sys/vm/dirty_ratio", "6")
    fails(errno.EINVAL, tree.write, "/proc/sys/vm/dirty_ratio", "600", writer="other")
    assert sysctls.entry("vm/dirty_ratio").writer == "root"
    assert list(sysctls.snapshot()) == sysctls.names()


def test_on_change_hears_changes_only_and_can_refuse() -> None:
    tree = Tree()
    sysctls = SysctlTable(tree)
    heard: list[int] = []

    def on_change(value: int) -> None:
        assert sysctls.get("a") == value
        if value == 13:
            raise ValueError("unlucky")
        heard.append(value)

    sysctls.register(Sysctl("a", 1, on_change=on_change))
    woken: list[str] = []
    tree.poll("/proc/sys/a", lambda: woken.append(tree.read("/proc/sys/a")))
    for text in ("1", "2", "2", "3"):
        tree.write("/proc/sys/a", text)
    assert (heard, woken) == ([2, 3], ["2", "3"])
    assert "unlucky" in fails(errno.EINVAL, tree.write, "/proc/sys/a", "13")
    with pytest.raises(ValueError, match="unlucky"):
        sysctls.set("a", 13)
    assert (sysctls.get("a"), sysctls.entry("a").writes, woken) == (3, 4, ["2", "3"])


def test_names_as_sysctl_8_reads_them() -> None:
    assert canonical_name("vm.dirty_ratio") == canonical_name("vm/dirty_ratio") == "vm/dirty_ratio"
    assert canonical_name("net.eth0/1.mtu") == "net/eth0.1/mtu"
    assert canonical_name("net/eth0.1/mtu") == "net/eth0.1/mtu"


@given(st.integers(), st.integers(-50, 50), st.integers(0, 100), st.booleans())
def test_integers_round_trip_or_are_refused(value: int, low: int, span: int, hexed: bool) -> None:
    tree = Tree()
    sysctls = SysctlTable(tree)
    entry = sysctls.register(Sysctl("a", low, minimum=low, maximum=low + span))
    text = hex(value) if hexed else str(value)
    if low <= value <= low + span:
        tree.write("/proc/sys/a", text)
        assert entry.value == value
        assert tree.read("/proc/sys/a") == str(value)
    else:
        fails(errno.EINVAL, tree.write, "/proc/sys/a", text)
        assert entry.value == low
