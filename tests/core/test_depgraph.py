from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.depgraph import ModuleGraph, Step
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.errors import DependencyError, ManifestError, NoSuchModule, UsageError
from uxk.uapi.manifest import Bind, Manifest, Softdep


def graph(config: ModprobeConfig | None = None, **modules: dict[str, Any] | str) -> ModuleGraph:
    """Modules by keyword; a plain text is a list of hard dependencies."""
    manifests = {}
    for name, fields in modules.items():
        values: dict[str, Any] = {"depends": tuple(fields.split())} if isinstance(fields, str) else fields
        manifests[name] = Manifest(name=name, **values)
    return ModuleGraph(manifests, config or ModprobeConfig())


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def test_hard_dependencies_depth_first_in_declared_order() -> None:
    g = graph(nvme="pci blk", blk="mem", pci="mem bus", mem="", bus="", other="")
    assert names(g.load_order("nvme")) == ["mem", "bus", "pci", "blk", "nvme"]
    assert not any(step.soft for step in g.load_order("nvme"))
    assert g.dependents("mem") == ["blk", "pci"]
    assert g.modules_dep() == ("blk: mem\nbus:\nmem:\nnvme: blk pci bus mem\nother:\npci: bus mem\n")


def test_soft_dependencies() -> None:
    g = graph(
        a={"depends": ("hard",), "softdep": Softdep(pre=("pre", "missing"), post=("post",))},
        hard="", pre="under", under="", post="",
    )  # fmt: skip
    assert g.load_order("a") == [
        Step("hard", False), Step("under", True), Step("pre", True), Step("a", False),
        Step("post", True),
    ]  # fmt: skip


def test_configured_softdeps_come_last() -> None:
    config = ModprobeConfig(softdeps={"a": Softdep(("x",), ("a", "missing"))})
    g = graph(config, a={"softdep": Softdep(("y",))}, x="", y="")
    assert names(g.load_order("a")) == ["y", "x", "a"]


def test_a_soft_dependency_that_became_hard_is_hard() -> None:
    g = graph(top="mid shared", mid={"softdep": Softdep(("shared",))}, shared="")
    assert g.load_order("top") == [
        Step("shared", False), Step("mid", False), Step("top", False),
    ]  # fmt: skip


def test_soft_circles_are_no_circles() -> None:
    g = graph(a={"softdep": Softdep(("b",))}, b={"softdep": Softdep(("a",))})
    assert names(g.load_order("a")) == ["b", "a"]
    assert names(g.load_order("b")) == ["a", "b"]


def test_a_post_that_needs_a_module_still_to_come_waits_for_the_end() -> None:
    g = graph(top="base", base={"softdep": Softdep(post=("plugin",))}, plugin="top")
    assert names(g.load_order("top")) == ["base", "top", "plugin"]
    assert names(g.load_order("plugin")) == ["base", "top", "plugin"]


def test_broken_soft_dependencies_are_left_out() -> None:
    g = graph(a={"softdep": Softdep(("b", "c"))}, b="missing", c="d", d="c")
    assert names(g.load_order("a")) == ["a"]
    assert g.modules_dep() == "a:\n"


def test_circles_name_the_chain() -> None:
    g = graph(top="a", a="b", b="a", selfish="")
    with pytest.raises(DependencyError, match=r"circular dependency: a -> b -> a$") as caught:
        g.load_order("top")
    assert caught.value.errno_name == "ELOOP"
    assert g.check_all() == [
        "a: circular dependency: a -> b -> a",
        "b: circular dependency: b -> a -> b",
        "top: circular dependency: a -> b -> a",
    ]


def test_missing_names_the_chain() -> None:
    g = graph(top="mid", mid="pci_cor", pci_core="")
    with pytest.raises(NoSuchModule, match=r"top -> mid -> pci_cor: .*did you mean 'pci_core'"):
        g.load_order("top")
    with pytest.raises(NoSuchModule, match=r"'tpo' .did you mean 'top'") as caught:
        g.load_order("tpo")
    assert caught.value.errno_name == "ENOENT"
    assert len(g.check_all()) == 2


def test_long_chains_are_no_deep_recursion() -> None:
    count = 3000
    chain = {f"m{i}": f"m{i + 1}" for i in range(count)} | {f"m{count}": ""}
    g = graph(None, **chain)
    assert len(g.load_order("m0")) == count + 1
    circle = graph(None, **(chain | {f"m{count}": "m0"}))
    with pytest.raises(DependencyError, match=r"m0 -> .* \(3002 names\) -> .* -> m0") as caught:
        circle.load_order("m0")
    assert len(str(caught.value)) < 300


# --- names -----------------------------------------------------------------------------------------


def test_names_and_aliases() -> None:
    g = graph(
        ModprobeConfig(aliases=(("my-disk", "nvme"), ("gone", "nothing"))),
        nvme={"alias": ("block:nvme*", "fast-disk", "nvm[0-9]")}, null={"alias": ("block:null0",)},
        two_words={"alias": ("block:*",)},
    )  # fmt: skip
    assert g.resolve("two-words") == g.resolve("two_words") == "two_words"
    assert g.resolve("fast_disk") == g.resolve("fast-disk") == g.resolve("my_disk") == "nvme"
    assert g.resolve("nvm3") == "nvme"
    assert g.resolve("block:null0") == "null", "exact before patterns"
    assert g.resolve("block:x") == "two_words"
    with pytest.raises(UsageError, match="'block:nvme0' is ambiguous: it fits nvme, two_words") as e:
        g.resolve("block:nvme0")
    assert e.value.errno_name == "ENOTUNIQ"
    with pytest.raises(NoSuchModule, match="alias of nothing, which does not exist"):
        g.resolve("gone")
    assert g.check_all() == ["alias gone: points to nothing, which does not exist"]
    for hostile in ("", "x" * 10_000, "uxk", "[", "\x00", "*"):
        with pytest.raises(NoSuchModule) as caught:
            g.resolve(hostile)
        assert len(str(caught.value)) < 200


def test_the_real_name_wins_over_aliases() -> None:
    g = graph(a="", b={"alias": ("a", "c")}, d={"alias": ("c",)})
    assert g.resolve("a") == "a"
    assert g.check_all() == [
        "alias a: hidden by the module of that name",
        "alias c: declared by b, d",
    ]


def test_modules_alias() -> None:
    g = graph(b={"alias": ("x*", "y")}, a={"binds": (Bind({"vendor": "u *", "class": "block"}),)})
    assert g.modules_alias() == (
        "# Aliases extracted from modules themselves.\nalias uxk:class=block;vendor=u%20* a\nalias x* b\nalias y b\n"
    )


def test_blacklist_concerns_aliases_and_bind_rules_only() -> None:
    rule = {"binds": (Bind({"class": "block"}),), "alias": ("disk",)}
    g = graph(ModprobeConfig(blacklist=("slow-one",)), slow_one=rule, user="slow_one")
    assert names(g.load_order("slow-one")) == ["slow_one"]
    assert names(g.load_order("user")) == ["slow_one", "user"]
    with pytest.raises(NoSuchModule, match="'disk' is an alias of the blacklisted slow_one"):
        g.resolve("disk")
    with pytest.raises(NoSuchModule, match="blacklisted"):
        g.resolve("uxk:class=block")
    both = graph(ModprobeConfig(blacklist=("slow_one",)), slow_one=rule, fast=rule)
    assert both.resolve("disk") == "fast"
    assert both.resolve("uxk:class=block;vendor=x") == "fast"


def test_wrong_sets() -> None:
    with pytest.raises(ManifestError, match="two modules have this name"):
        ModuleGraph({"a-b": Manifest(name="a-b"), "a_b": Manifest(name="a_b")})
    with pytest.raises(ManifestError, match="its manifest names 'b'"):
        ModuleGraph({"a": Manifest(name="b")})


# --- any graph ---------------------------------------------------------------------------------------

words = st.sampled_from([f"m{i}" for i in range(7)])
lists = st.lists(words, max_size=3, unique=True).map(tuple)
manifests = st.dictionaries(
    words, st.tuples(lists, lists, lists), min_size=1, max_size=7
)  # fmt: skip


def build(shape: dict[str, tuple[tuple[str, ...], ...]]) -> dict[str, Manifest]:
    return {
        name: Manifest(name=name, depends=depends, softdep=Softdep(pre, post))
        for name, (depends, pre, post) in shape.items()
    }


def loadable(modules: dict[str, Manifest]) -> set[str]:
    """Brute force: what can be loaded at all, by hard dependencies."""
    done: set[str] = set()
    while True:
        more = {n for n, m in modules.items() if set(m.depends) <= done} - done
        if not more:
            return done
        done |= more


@given(manifests)
def test_load_order_is_a_topological_order(shape: dict[str, tuple[tuple[str, ...], ...]]) -> None:
    modules = build(shape)
    g = ModuleGraph(modules)
    good = loadable(modules)
    assert {line.split(":")[0] for line in g.modules_dep().splitlines()} == good
    for root in modules:
        if root not in good:
            with pytest.raises((NoSuchModule, DependencyError), match=" -> "):
                g.load_order(root)
            continue
        steps = g.load_order(root)
        order = names(steps)
        assert len(set(order)) == len(order)
        place = {name: index for index, name in enumerate(order)}
        for name in order:
            assert all(place[needed] < place[name] for needed in modules[name].depends)
        wanted, todo = set(), [root]
        hard, hard_todo = set(), [root]
        while todo:
            name = todo.pop()
            if name in good and name not in wanted:
                wanted.add(name)
                m = modules[name]
                todo += [*m.depends, *m.softdep.pre, *m.softdep.post]
        while hard_todo:
            name = hard_todo.pop()
            if name not in hard:
                hard.add(name)
                hard_todo += modules[name].depends
        assert set(order) == wanted, "everything that can be had is loaded"
        assert {step.name for step in steps if not step.soft} == hard


@given(manifests)
def test_pre_before_and_post_after_where_nothing_forbids(
    shape: dict[str, tuple[tuple[str, ...], ...]],
) -> None:
    # Links from higher to lower numbers only: no circles, so every wish can be granted.
    acyclic = {
        name: tuple(tuple(other for other in group if other < name and other in shape) for group in (depends, pre, ()))
        for name, (depends, pre, _) in shape.items()
    }
    modules = build(acyclic)
    g = ModuleGraph(modules)
    for root in modules:
        order = names(g.load_order(root))
        for name in order:
            for pre in modules[name].softdep.pre:
                assert order.index(pre) < order.index(name)
