"""The sysfs tree: attributes, links, errors, waiters, and that nothing is ever left behind."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uxk import limits
from uxk.core import tree as tree_module
from uxk.core.tree import Attribute, Stat, Tree, attribute_table
from uxk.errors import CapabilityError, KernelBug, TreeError


class Owner:
    def __init__(self, value: str = "1") -> None:
        self.value = value


def _set(owner: Owner, text: str) -> None:
    if not text.isdigit():
        raise ValueError(f"{text!r} is no number")
    owner.value = text


TABLE = attribute_table(
    Attribute("value", lambda owner: owner.value, _set),
    Attribute("state", lambda owner: "live"),
    Attribute("reset", None, lambda owner, text: _set(owner, "0")),
)


def fails(number: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> TreeError:
    with pytest.raises(TreeError) as caught:
        function(*args, **kwargs)
    assert caught.value.errno == number, caught.value
    return caught.value


def raising(exc: BaseException) -> Callable[..., str]:
    def show(*_: object) -> str:
        raise exc

    return show


def test_read_and_write_go_through_the_owner() -> None:
    tree = Tree()
    owner = Owner("7")
    tree.add("/sys/module/null", owner, TABLE)
    assert tree.read("/sys/module/null/value") == "7"
    tree.write("/sys/module/null/value", "12\n")
    assert (tree.read("/sys/module/null/value"), owner.value) == ("12", "12")
    tree.write("/sys/module/null/reset", "")
    assert owner.value == "0"
    assert tree.listdir("/sys/module/null/") == ["reset", "state", "value"]
    assert [entry[0] for entry in tree.walk("/sys")] == [
        "/sys/module",
        "/sys/module/null",
        "/sys/module/null/reset",
        "/sys/module/null/state",
        "/sys/module/null/value",
    ]


def test_only_the_last_newline_of_a_write_is_dropped() -> None:
    got: list[str] = []
    tree = Tree()
    tree.add("/a", None, attribute_table(Attribute("x", None, lambda _, text: got.append(text))))
    for text in ("1\n\n", " 1 ", "\n", ""):
        tree.write("/a/x", text)
    assert got == ["1\n", " 1 ", "", ""]


def test_errors_name_the_path_and_carry_linux_errnos() -> None:
    tree = Tree()
    tree.add("/a/b", Owner(), TABLE)
    fails(errno.ENOENT, tree.read, "/a/b/nothing")
    fails(errno.ENOENT, tree.read, "/x/y/z")
    fails(errno.EISDIR, tree.read, "/a/b")
    fails(errno.EISDIR, tree.write, "/", "1")
    fails(errno.ENOTDIR, tree.read, "/a/b/value/more")
    fails(errno.ENOTDIR, tree.listdir, "/a/b/value")
    fails(errno.EACCES, tree.write, "/a/b/state", "1")
    fails(errno.EACCES, tree.read, "/a/b/reset")
    fails(errno.EACCES, tree.write, "/a/b/value", "1", root=False)
    assert tree.read("/a/b/value", root=False) == "1"
    tree.add_attribute("/a/b", Attribute("secret", str, _set, 0o600))
    fails(errno.EACCES, tree.read, "/a/b/secret", root=False)
    assert "/a/b/value: 'x' is no number" in str(fails(errno.EINVAL, tree.write, "/a/b/value", "x"))
    fails(errno.E2BIG, tree.write, "/a/b/value", "1" * (limits.SHOW_MAX_BYTES + 1))
    fails(errno.EINVAL, tree.write, "/a/b/value", "\ud800")
    fails(errno.EEXIST, tree.add, "/a/b", Owner())
    fails(errno.EEXIST, tree.add, "/a/b/value")
    fails(errno.ENOTDIR, tree.add, "/a/b/value/deeper")
    fails(errno.EBUSY, tree.remove, "/")
    fails(errno.EPERM, tree.remove, "/a/b/value")
    fails(errno.EINVAL, tree.readlink, "/a/b")


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "//", "/a//b", "/a/./b", "/a/../b", "/..", "/a\0b", "/\ud800", "/a//"]
)
def test_malformed_paths_are_refused_everywhere(path: str) -> None:
    tree = Tree()
    for method in (tree.read, tree.add, tree.remove, tree.stat, tree.listdir, tree.notify):
        fails(errno.EINVAL, method, path)
    fails(errno.EINVAL, tree.write, path, "1")
    fails(errno.EINVAL, tree.link, path, "/")
    assert not tree.exists(path)
    assert tree.kobject_count == 1


def test_bounds_of_paths_and_depth_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree()
    fails(errno.ENAMETOOLONG, tree.add, "/" + "a" * 256)
    fails(errno.ENAMETOOLONG, tree.add, "/good/" + "é" * 128)
    fails(errno.ENAMETOOLONG, tree.read, "/a" * limits.PATH_MAX_BYTES)
    fails(errno.ENAMETOOLONG, tree.add, "/a" * 65)
    fails(errno.EINVAL, tree.add, "/good/\x1b[31m/more")
    fails(errno.EINVAL, tree.link, "/good/a\nb", "/")
    assert tree.kobject_count == 1
    tree.add("/a" * 64)
    tree.link("/l", "/a" * 64)
    fails(errno.ENAMETOOLONG, tree.add, "/l/deeper")
    monkeypatch.setattr(tree_module, "NODES_MAX", 70)
    fails(errno.ENOSPC, tree.add, "/1/2/3/4/5")
    monkeypatch.setattr(tree_module, "EXTRA_ATTRIBUTES_MAX", 1)
    tree.add_attribute("/a", Attribute("x", str))
    fails(errno.ENOSPC, tree.add_attribute, "/a", Attribute("y", str))


def test_attribute_modes() -> None:
    assert Attribute("a", str).mode == 0o444
    assert Attribute("a", str, _set).mode == 0o644
    assert Attribute("a", None, _set).mode == 0o200
    assert Attribute("a", str, _set, 0o600).mode == 0o600
    fails(errno.EINVAL, Attribute, "a")
    fails(errno.EINVAL, Attribute, "a", str, None, 0o644)
    fails(errno.EINVAL, Attribute, "a", None, _set, 0o644)
    fails(errno.EINVAL, Attribute, "a", str, None, 0o555)
    fails(errno.EINVAL, Attribute, "a/b", str)
    fails(errno.EEXIST, attribute_table, Attribute("a", str), Attribute("a", str))


def test_what_attribute_code_raises_becomes_an_errno_and_bugs_are_reported() -> None:
    bugs: list[tuple[str, BaseException]] = []
    tree = Tree(on_bug=lambda path, exc: bugs.append((path, exc)))

    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even a message")

    answers: list[tuple[BaseException, int]] = [
        (ValueError("no"), errno.EINVAL),
        (msgspec.ValidationError("no"), errno.EINVAL),
        (CapabilityError("no"), errno.EACCES),
        (OSError(errno.ENODEV, "no"), errno.ENODEV),
        (OSError("no"), errno.EIO),
        (TreeError("no", errno=errno.EBUSY), errno.EBUSY),
    ]
    broken: list[tuple[BaseException, int]] = [
        (KeyError("x"), errno.EIO),
        (Rude(), errno.EIO),
        (KernelBug("x"), errno.EIO),
    ]
    for index, (exc, number) in enumerate([*answers, *broken]):
        table = attribute_table(Attribute("x", raising(exc), raising(exc)))  # type: ignore[arg-type]
        tree.add(f"/{index}", None, table)
        assert f"/{index}/x: " in str(fails(number, tree.read, f"/{index}/x"))
        fails(number, tree.write, f"/{index}/x", "")
    assert [exc for _, exc in bugs] == [exc for exc, _ in broken for _ in range(2)]
    assert {path for path, _ in bugs} == {"/6/x", "/7/x", "/8/x"}


def test_cancellation_passes_through() -> None:
    tree = Tree()
    tree.add("/a", None, attribute_table(Attribute("x", raising(KeyboardInterrupt()))))
    with pytest.raises(KeyboardInterrupt):
        tree.read("/a/x")


def test_show_is_bounded_and_typed() -> None:
    bugs: list[str] = []
    tree = Tree(on_bug=lambda path, exc: bugs.append(str(exc)))
    shows: dict[str, Any] = {
        "big": lambda _: "é" * limits.SHOW_MAX_BYTES,
        "exact": lambda _: "x" * (limits.SHOW_MAX_BYTES - 1) + "\n",
        "number": lambda _: 5,
        "torn": lambda _: "\ud800",
        "self": lambda _: tree.read("/a/self"),
    }
    tree.add("/a", None, attribute_table(*(Attribute(name, show) for name, show in shows.items())))
    assert tree.read("/a/big") == "é" * ((limits.SHOW_MAX_BYTES - 1) // 2)
    assert len(tree.read("/a/exact")) == limits.SHOW_MAX_BYTES - 1
    fails(errno.EIO, tree.read, "/a/number")
    fails(errno.EINVAL, tree.read, "/a/torn")
    assert len(bugs) == 2
    depth = sys.getrecursionlimit()
    fails(errno.EIO, tree.read, "/a/self")
    assert sys.getrecursionlimit() == depth


def test_links_are_relative_followed_and_go_with_their_target() -> None:
    tree = Tree()
    before = (tree.kobject_count, tree.attribute_count, tree.link_count)
    tree.add("/sys/devices/null0", Owner("3"), TABLE)
    tree.link("/sys/class/misc/null0", "/sys/devices/null0")
    assert tree.readlink("/sys/class/misc/null0") == "../../devices/null0"
    assert tree.read("/sys/class/misc/null0/value") == "3"
    assert tree.canonical("/sys/class/misc/null0/value") == "/sys/devices/null0/value"
    assert tree.stat("/sys/class/misc/null0") == Stat("link", 0o777, 19)
    assert tree.stat("/sys/class/misc/null0/value") == Stat("file", 0o644, 4096)
    assert tree.stat("/sys/class").kind == "dir"
    fails(errno.EEXIST, tree.add, "/sys/class/misc/null0", Owner())
    fails(errno.EEXIST, tree.link, "/sys/class/misc/null0", "/")
    fails(errno.ENOENT, tree.link, "/x", "/gone")
    fails(errno.ENOTDIR, tree.link, "/x", "/sys/devices/null0/value")
    tree.remove("/sys/devices/null0")
    assert not tree.exists("/sys")
    assert (tree.kobject_count, tree.attribute_count, tree.link_count) == before


def test_removing_a_link_leaves_the_target_and_loops_end() -> None:
    tree = Tree()
    tree.add("/a", Owner(), TABLE)
    tree.link("/a/self", "/a")
    tree.link("/top", "/")
    assert tree.readlink("/a/self") == "."
    assert tree.read("/a" + "/self" * 40 + "/value") == "1"
    fails(errno.ELOOP, tree.read, "/a" + "/self" * 41 + "/value")
    assert not tree.exists("/a" + "/self" * 41)
    assert len(list(tree.walk("/"))) == 6
    tree.remove("/top/a/self/self")
    tree.remove("/top")
    assert (tree.link_count, tree.read("/a/value")) == (0, "1")


def test_made_parents_go_with_their_last_child_and_added_ones_stay() -> None:
    tree = Tree()
    tree.add("/sys/class")
    tree.add("/sys/class/block/nvme0", Owner())
    tree.add("/sys/class/block/nvme1", Owner())
    tree.remove("/sys/class/block/nvme0")
    assert tree.exists("/sys/class/block")
    tree.remove("/sys/class/block/nvme1")
    assert tree.listdir("/sys/class") == []
    tree.add("/sys/class", Owner(), TABLE)
    fails(errno.EEXIST, tree.add, "/sys/class", Owner())


def test_run_time_attributes() -> None:
    tree = Tree()
    tree.add("/a", Owner("9"), TABLE)
    tree.add_attribute("/a", Attribute("mine", lambda owner: f"<{owner.value}>"))
    assert tree.read("/a/mine") == "<9>"
    fails(errno.EEXIST, tree.add_attribute, "/a", Attribute("mine", str))
    fails(errno.EEXIST, tree.add_attribute, "/a", Attribute("state", str))
    fails(errno.ENOTDIR, tree.add_attribute, "/a/state", Attribute("x", str), parents=True)
    fails(errno.ENOENT, tree.add_attribute, "/b", Attribute("x", str))
    fails(errno.EPERM, tree.remove_attribute, "/a", "state")
    fails(errno.ENOENT, tree.remove_attribute, "/a", "nothing")
    fails(errno.EEXIST, tree.add, "/a/mine")
    tree.remove("/a/mine")
    assert tree.listdir("/a") == ["reset", "state", "value"]
    tree.add_attribute("/p/q", Attribute("x", str), parents=True)
    fails(errno.EEXIST, tree.add, "/p/q", Owner(), attribute_table(Attribute("x", str)))
    tree.remove_attribute("/p/q", "x")
    assert not tree.exists("/p")


def test_poll_wakes_once_per_notify_and_when_gone() -> None:
    tree = Tree()
    tree.add("/a/b", Owner(), TABLE)
    woken: list[str] = []
    cancel = tree.poll("/a/b/value", lambda: woken.append("value"))
    tree.poll("/a/b", lambda: woken.append("dir" if tree.exists("/a/b") else "gone"))
    tree.notify("/a/b/value")
    tree.notify("/a/b/state")
    assert (woken, tree.generation("/a/b/value"), tree.generation("/a/b")) == (["value"], 1, 0)
    cancel()
    cancel()
    tree.notify("/a/b/value")
    tree.notify("/a/b")
    assert (woken, tree.waiter_count) == (["value", "dir"], 1)
    tree.remove("/a")
    assert (woken, tree.waiter_count) == (["value", "dir", "gone"], 0)
    fails(errno.ENOENT, tree.generation, "/a/b")


def test_waiters_are_bounded_contained_and_cannot_recurse() -> None:
    bugs: list[str] = []
    tree = Tree(on_bug=lambda path, exc: bugs.append(path))
    tree.add("/a", Owner(), TABLE)
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        tree.notify("/a/value")

    tree.poll("/a/value", raising(KeyError()))  # type: ignore[arg-type]
    tree.poll("/a/value", again)
    tree.notify("/a/value")
    assert (calls, bugs, tree.generation("/a/value")) == (2, ["/a/value"], 3)
    for _ in range(limits.POLL_WAITERS_MAX):
        tree.poll("/a/state", again)
    fails(errno.ENOSPC, tree.poll, "/a/state", again)


def test_waiters_may_remove_what_they_wait_on() -> None:
    tree = Tree()
    tree.add("/a", Owner(), TABLE)
    woken: list[int] = []

    def first() -> None:
        woken.append(1)
        if tree.exists("/a"):
            tree.remove("/a")

    tree.poll("/a/value", first)
    tree.poll("/a/value", lambda: woken.append(2))
    tree.notify("/a/value")
    assert woken == [1, 1, 2]
    assert tree.kobject_count == 1


def test_writer_is_known_while_storing() -> None:
    tree = Tree()
    seen: list[str] = []
    store = Attribute("x", None, lambda _, text: seen.append(tree.writer), 0o222)
    tree.add("/a", None, attribute_table(store))
    tree.write("/a/x", "", writer="agent")
    tree.write("/a/x", "")
    tree.write("/a/x", "", root=False)
    assert (seen, tree.writer) == (["agent", "root", "user"], "")


def test_render() -> None:
    tree = Tree()
    tree.add("/sys/a", Owner("1\n2"), TABLE)
    tree.add("/sys/b", Owner("\x1b[31m"), TABLE)
    tree.link("/sys/c", "/sys/a")
    assert tree.render("/sys/a") == "/sys/a\n├── reset\n├── state\n└── value"
    assert tree.render("/sys", values=True).splitlines() == [
        "/sys",
        "├── a",
        "│   ├── reset <EACCES>",
        "│   ├── state = live",
        "│   └── value = 1 ...",
        "├── b",
        "│   ├── reset <EACCES>",
        "│   ├── state = live",
        "│   └── value = '\\x1b[31m'",
        "└── c -> a",
    ]


def test_ten_thousand_idle_kobjects_are_small() -> None:
    tree = Tree()
    kobject = tree.add("/sys/module/m0", Owner(), TABLE)
    parts = [getattr(kobject, name) for name in ("tables", "children", "events", "extra")]
    assert parts[1:] == [None] * 3
    assert sys.getsizeof(kobject) + sys.getsizeof(parts[0]) < 256


def outcome(function: Callable[..., Any], *args: Any) -> TreeError | None:
    try:
        function(*args)
    except TreeError as exc:
        return exc
    return None


@given(st.text(max_size=40), st.text(max_size=40))
def test_hostile_text_only_ever_gives_tree_errors(path: str, value: str) -> None:
    tree = Tree()
    tree.add("/a", Owner(), TABLE)
    calls = (tree.read, tree.stat, tree.listdir, tree.readlink, tree.add, tree.remove)
    for target in (path, f"/a/{path}", f"/a/value{path}"):
        outcomes = [outcome(call, target) for call in calls] + [outcome(tree.write, target, value)]
        assert all(exc is None or (exc.errno and str(exc).isprintable()) for exc in outcomes)
    assert tree.kobject_count == 1 + sum(stat.kind == "dir" for _, stat in tree.walk())


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))


class TreeMachine(RuleBasedStateMachine):
    """Any sequence of operations keeps the counts true and the tree whole, and can be undone."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.waiting: dict[int, str] = {}
        self.woken: set[int] = set()
        self.polls = 0

    def attempt(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        before = [*self.tree.walk()]
        try:
            function(*args, **kwargs)
        except TreeError:
            assert [*self.tree.walk()] == before, "a refused operation left a trace"

    @rule(path=PATHS, owned=st.booleans())
    def add(self, path: str, owned: bool) -> None:
        self.attempt(self.tree.add, path, Owner() if owned else None, TABLE if owned else None)

    @rule(path=PATHS, to=PATHS)
    def link(self, path: str, to: str) -> None:
        self.attempt(self.tree.link, path, to)

    @rule(path=PATHS, name=st.sampled_from("abx"), parents=st.booleans())
    def add_attribute(self, path: str, name: str, parents: bool) -> None:
        self.attempt(self.tree.add_attribute, path, Attribute(name, repr), parents=parents)

    @rule(path=PATHS, name=st.sampled_from(["", "/x", "/value"]))
    def remove(self, path: str, name: str) -> None:
        self.attempt(self.tree.remove, path + name)

    @rule(path=PATHS, name=st.sampled_from(["", "/x", "/value"]))
    def poll(self, path: str, name: str) -> None:
        if self.tree.exists(path + name):
            key = self.polls = self.polls + 1
            self.waiting[key] = self.tree.canonical(path + name)
            self.tree.poll(path + name, lambda: self.woken.add(key))

    @rule(path=PATHS)
    def notify(self, path: str) -> None:
        if self.tree.exists(path):
            place = self.tree.canonical(path)
            live = {key for key, where in self.waiting.items() if where == place}
            self.tree.notify(path)
            assert self.woken == live

    @invariant()
    def counts_are_true(self) -> None:
        entries = [*self.tree.walk()]
        kinds = [stat.kind for _, stat in entries]
        assert self.tree.kobject_count == 1 + kinds.count("dir")
        assert self.tree.link_count == kinds.count("link")
        assert self.tree.attribute_count == kinds.count("file")
        for path, stat in entries:
            if stat.kind == "link":
                assert self.tree.exists(self.tree.canonical(path))
                assert not self.tree.readlink(path).startswith("/")
            else:
                assert self.tree.canonical(path) == path

    @invariant()
    def the_gone_are_woken(self) -> None:
        gone = {key for key, place in self.waiting.items() if not self.tree.exists(place)}
        assert gone <= self.woken
        self.woken.clear()
        self.waiting = {key: self.waiting[key] for key in self.waiting.keys() - gone}
        assert self.tree.waiter_count == len(self.waiting)

    def teardown(self) -> None:
        for name in self.tree.listdir("/"):
            if self.tree.exists(f"/{name}"):
                self.tree.remove(f"/{name}")
        counts = (self.tree.kobject_count, self.tree.link_count, self.tree.waiter_count)
        assert counts == (1, 0, 0)
        assert self.tree.attribute_count == 0


TestTreeMachine = TreeMachine.TestCase
