"""Finding and loading modules by name: modprobe, insmod, depmod, modinfo."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

import uxk
from uxk.core.modprobe_conf import ModprobeConfig
from uxk.errors import BudgetError, CapabilityError, DependencyError, ManifestError, ModuleError, NoSuchModule, UxkError
from uxk.kernel import catalog as catalog_module
from uxk.kernel.catalog import Catalog
from uxk.module import declared


class Params(uxk.Params):
    greeting: str = "hello"
    depth: Annotated[int, uxk.param(ge=1, le=64, help="Slots.")] = 8
    size: Annotated[int, uxk.param(ge=0, unit="bytes", writable=True)] = 4096


def define(name: str, *, log: list[str] | None = None, **options: Any) -> type[uxk.Extension[Any]]:
    """An extension that answers with its payload, and notes in ``log`` that its code ran."""

    class Defined(uxk.Extension[Any]):
        """Answers with its own payload.

        More about it.
        """

        manifest = uxk.Manifest(name=name, **options)

        def __init__(self) -> None:
            if log is not None:
                log.append(f"{name}.__init__")

        def setup(self, ctx: uxk.Context) -> None:
            if log is not None:
                log.append(f"{name}.setup")

        def on_batch(self, ctx: uxk.Context, requests: Any) -> None:
            for request in requests:
                ctx.complete(request, payload=request.payload)

    return Defined


def lines(kernel: uxk.Kernel, word: str) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if word in record.text]


# --- by name ---


async def test_modprobe_by_name_answers_and_shows_its_parameters() -> None:
    cls = define("reg-echo", params=Params)
    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("reg-echo", greeting="hi")
        assert (module.name, module.manifest) == ("reg_echo", cls.manifest)
        assert (await module.submit(b"abc")).payload == b"abc"
        assert kernel.sysfs.read("/sys/module/reg_echo/parameters/greeting").strip() == "hi"
        assert [row.name for row in kernel.lsmod()] == ["reg_echo"]


async def test_dash_and_underscore_are_the_same() -> None:
    _keep = define("reg-dash_ed")
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("reg_dash-ed")
        assert (await kernel.modprobe("reg-dash_ed")).id == one.id
        assert kernel.module("reg-dash-ed").id == one.id
        await kernel.rmmod("reg-dash-ed")
        assert kernel.lsmod() == []


async def test_loaded_already_returns_the_same_and_runs_nothing_again() -> None:
    log: list[str] = []
    _keep = define("reg_twice", log=log, params=Params)
    async with uxk.Kernel() as kernel:
        first = await kernel.modprobe("reg_twice", greeting="a")
        second = await kernel.modprobe("reg_twice", greeting="b")
        assert first.id == second.id and second.params == Params(greeting="a")
    assert log == ["reg_twice.__init__", "reg_twice.setup"]


async def test_instances_are_told_apart() -> None:
    _keep = define("reg_inst", params=Params)
    async with uxk.Kernel() as kernel:
        one = await kernel.modprobe("reg_inst", depth=1)
        two = await kernel.modprobe("reg_inst", instance="reg_b", depth=2)
        assert (await kernel.modprobe("reg_inst", instance="reg_b")).id == two.id != one.id
        shown = [kernel.sysfs.read(f"/sys/module/{name}/parameters/depth").strip() for name in ("reg_inst", "reg_b")]
        assert shown == ["1", "2"]
        assert one.devices == ("reg_inst0",) and two.devices == ("reg_b",)
        await kernel.rmmod("reg_inst")
        assert (await two.submit(b"x")).payload == b"x"


async def test_an_instance_does_not_pass_for_another_module() -> None:
    _keep = [define("reg_one"), define("reg_two")]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_one", instance="reg_two")
        with pytest.raises(UxkError, match="already an instance of reg_one") as caught:
            await kernel.modprobe("reg_two")
        assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("instance", ["UP", "a/b", "../x", "x" * 56, "a b", "é"])
async def test_bad_instance_names_are_refused(instance: str) -> None:
    log: list[str] = []
    _keep = define("reg_names", log=log)
    async with uxk.Kernel() as kernel:
        with pytest.raises(UxkError):
            await kernel.modprobe("reg_names", instance=instance)
        assert log == [] and kernel.lsmod() == []


async def test_unknown_names_come_with_a_suggestion() -> None:
    _keep = define("reg_spelling")
    async with uxk.Kernel() as kernel:
        with pytest.raises(NoSuchModule, match="did you mean 'reg_spelling'"):
            await kernel.modprobe("reg_speling")
        for hostile in ("", "*", "../etc/passwd", "x" * 100_000, "a\0b"):
            with pytest.raises(NoSuchModule):
                await kernel.modprobe(hostile)
        with pytest.raises(NoSuchModule):
            await kernel.rmmod("reg_spelling")
        with pytest.raises(NoSuchModule):
            kernel.module("reg_spelling")


async def test_aliases_and_patterns_find_the_module() -> None:
    _keep = define("reg_alias", alias=("reg-a-*", "reg_exact"))
    async with uxk.Kernel() as kernel:
        for alias in ("reg_exact", "reg-a-7"):
            assert (await kernel.modprobe(alias)).name == "reg_alias"
        assert (await kernel.modprobe("reg_exact", instance="reg_more")).name == "reg_more"


async def test_an_ambiguous_alias_is_refused_and_names_both() -> None:
    _keep = [define("reg_amb1", alias=("reg_amb",)), define("reg_amb2", alias=("reg_amb",))]
    async with uxk.Kernel() as kernel:
        with pytest.raises(UxkError, match="reg_amb1, reg_amb2") as caught:
            await kernel.modprobe("reg_amb")
        assert caught.value.errno == errno.ENOTUNIQ


# --- dependencies ---


async def test_dependencies_come_first_and_hold_what_they_need() -> None:
    log: list[str] = []
    _keep = [
        define("reg_top", log=log, depends=("reg-mid", "reg_base")), define("reg_mid", log=log, depends=("reg_base",)),
        define("reg_base", log=log),
    ]  # fmt: skip
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_top")
        assert [entry for entry in log if entry.endswith("setup")] == [
            "reg_base.setup", "reg_mid.setup", "reg_top.setup",
        ]  # fmt: skip
        with pytest.raises(uxk.InUse, match="reg_base is in use by: reg_mid, reg_top"):
            await kernel.rmmod("reg_base")
        assert {row.name: row.used_by for row in kernel.lsmod()} == {
            "reg_top": (), "reg_mid": ("reg_top",), "reg_base": ("reg_mid", "reg_top"),
        }  # fmt: skip
        for name in ("reg_top", "reg_mid", "reg_base"):
            await kernel.rmmod(name)


async def test_a_dependency_by_alias_is_held_too() -> None:
    _keep = [define("reg_user", depends=("reg-service",)), define("reg_provider", alias=("reg_service",))]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_user")
        with pytest.raises(uxk.InUse, match="reg_user"):
            await kernel.rmmod("reg_provider")
        await kernel.rmmod("reg_user")
        await kernel.rmmod("reg_provider")


async def test_a_further_instance_of_a_dependency_is_not_held() -> None:
    _keep = [define("reg_dependent", depends=("reg_needed",)), define("reg_needed")]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_dependent")
        await kernel.modprobe("reg_needed", instance="reg_spare")
        await kernel.rmmod("reg_spare")


async def test_missing_and_circular_dependencies_name_the_chain() -> None:
    log: list[str] = []
    _keep = [
        define("reg_lost", log=log, depends=("reg_way",)), define("reg_way", log=log, depends=("reg_nowhere",)),
        define("reg_ring1", log=log, depends=("reg_ring2",)), define("reg_ring2", log=log, depends=("reg_ring1",)),
    ]  # fmt: skip
    async with uxk.Kernel() as kernel:
        with pytest.raises(NoSuchModule, match="reg_lost -> reg_way -> reg_nowhere"):
            await kernel.modprobe("reg_lost")
        with pytest.raises(DependencyError, match="reg_ring1 -> reg_ring2 -> reg_ring1"):
            await kernel.modprobe("reg_ring1")
        assert log == [] and kernel.lsmod() == []


async def test_soft_dependencies_are_loaded_in_order_and_missing_ones_are_told() -> None:
    log: list[str] = []
    soft = uxk.Softdep(pre=("reg_pre", "reg_absent"), post=("reg_post",))
    _keep = [define("reg_soft", log=log, softdep=soft), define("reg_pre", log=log), define("reg_post", log=log)]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_soft")
        assert [entry for entry in log if entry.endswith("setup")] == [
            "reg_pre.setup", "reg_soft.setup", "reg_post.setup",
        ]  # fmt: skip
        assert any("reg_absent" in line for line in lines(kernel, "soft dependency"))
        await kernel.rmmod("reg_pre")  # soft: not held


async def test_a_soft_dependency_that_fails_stops_nobody(tmp_path: Path) -> None:
    class Failing(uxk.Extension):
        manifest = uxk.Manifest(name="reg_fails")

        def setup(self, ctx: uxk.Context) -> None:
            raise ValueError("no hardware")

    (tmp_path / "x.conf").write_text("options reg_badopt depth=99\n")
    _keep = [
        define("reg_hardy", softdep=uxk.Softdep(pre=("reg_fails", "reg_badopt", "reg_greedy"))),
        define("reg_badopt", params=Params), define("reg_greedy", budget=uxk.Budget(memory_bytes=1 << 31)),
    ]  # fmt: skip
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        assert (await kernel.modprobe("reg_hardy")).name == "reg_hardy"
        assert [row.name for row in kernel.lsmod()] == ["reg_hardy"]
        told = lines(kernel, "soft dependency")
        assert len(told) == 3 and "no hardware" in told[0] and "depth" in told[1] and "memory_bytes" in told[2]


# --- modprobe.d ---


async def test_options_apply_and_explicit_parameters_win(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("options reg-opt greeting=conf depth=3\nalias reg-short reg_opt\n")
    (tmp_path / "b.conf").write_text("options reg_opt size=8KiB\n")
    cls = define("reg_opt", params=Params)
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        module = await kernel.modprobe("reg_short", greeting="mine")
        assert module.params == Params(greeting="mine", depth=3, size=8192)
        other = await kernel.modprobe("reg_opt", instance="reg_opt_b")
        assert other.params == Params(greeting="conf", depth=3, size=8192)
        third = await kernel.insmod(cls, instance="reg_opt_c")
        assert third.params == Params()  # insmod reads no configuration, as on Linux


async def test_explicit_parameters_win_however_they_are_spelt(tmp_path: Path) -> None:
    class Dashed(uxk.Params):
        two_words: int = 1

    (tmp_path / "a.conf").write_text("options reg_dashes two_words=2\n")
    _keep = define("reg_dashes", params=Dashed)
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        given: dict[str, Any] = {"two-words": "3"}
        assert (await kernel.modprobe("reg_dashes", **given)).params == Dashed(two_words=3)


async def test_blacklist_concerns_aliases_only(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("blacklist reg_black\n")
    _keep = define("reg_black", alias=("reg_hole",))
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        with pytest.raises(NoSuchModule, match="blacklisted"):
            await kernel.modprobe("reg_hole")
        await kernel.modprobe("reg_black")


async def test_softdeps_of_the_administrator(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("softdep reg_admin pre: reg_first reg_gone\n")
    _keep = [define("reg_admin"), define("reg_first")]
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        await kernel.modprobe("reg_admin")
        assert [row.name for row in kernel.lsmod()] == ["reg_admin", "reg_first"]
        assert any("reg_gone" in line for line in lines(kernel, "soft dependency"))


def test_a_broken_configuration_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("\noptoins x y=1\n")
    with pytest.raises(UxkError, match=r"a\.conf:2"):
        uxk.Kernel(modprobe_d=tmp_path)
    with pytest.raises(UxkError, match="nowhere"):
        uxk.Kernel(modprobe_d=tmp_path / "nowhere")


# --- refusals before any code runs ---


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"depth": 65}, ("reg_strict", "depth", "65", "<= 64")),
        ({"depth": "65"}, ("reg_strict", "depth", "65", "<= 64")),
        ({"depth": "many"}, ("reg_strict", "depth", "many", "not an integer")),
        ({"depth": None}, ("reg_strict", "depth", "None")),
        ({"depht": 1}, ("reg_strict", "depht", "did you mean 'depth'")),
        ({"size": "4 furlongs"}, ("reg_strict", "size", "4 furlongs")),
        ({"greeting": b"bytes"}, ("reg_strict", "greeting")),
        ({"greeting": "x" * 5000}, ("reg_strict", "greeting", "4096")),
        ({"greeting": "\ud800"}, ("reg_strict", "greeting")),
    ],
)  # fmt: skip
async def test_parameter_errors_name_module_parameter_value_and_constraint(
    params: dict[str, Any], words: tuple[str, ...]
) -> None:
    log: list[str] = []
    _keep = define("reg_strict", log=log, params=Params)
    async with uxk.Kernel() as kernel:
        with pytest.raises(uxk.ParamError) as caught:
            await kernel.modprobe("reg_strict", **params)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert log == [] and kernel.lsmod() == [] and not kernel.sysfs.exists("/sys/module/reg_strict")


@pytest.mark.parametrize(
    ("manifest", "error", "words"),
    [
        ({"budget": uxk.Budget(memory_bytes=1 << 31)}, BudgetError, "memory_bytes"),
        ({"budget": uxk.Budget(queue_depth=3)}, ManifestError, "queue_depth"),
        ({"budget": uxk.Budget(queue_depth=1 << 20)}, ManifestError, "queue_depth"),
        ({"budget": uxk.Budget(memory_bytes=-1)}, ManifestError, "memory_bytes"),
        ({"capabilities": ("all:*",)}, ManifestError, "all:"),
        ({"capabilities": ("kmsg:fly",)}, ManifestError, "fly"),
        ({"driver_class": "../x"}, ManifestError, "driver_class"),
        ({"depends": ("reg_grants",)}, UxkError, "reg_grants"),
        ({"depends": "abc"}, ManifestError, "depends"),
        ({"ready_timeout_ns": -1}, ManifestError, "ready_timeout_ns"),
        ({"ready_timeout_ns": "soon"}, ManifestError, "ready_timeout_ns"),
        ({"kind": "virus"}, ManifestError, "kind"),
        ({"placement": "process"}, ModuleError, "process"),
        ({"params": int}, ManifestError, "params"),
        ({"restart": "never"}, ManifestError, "restart"),
        ({"binds": (uxk.Bind({"class": 5}),)}, ManifestError, "binds"),  # type: ignore[dict-item]
        ({"budget": None}, ManifestError, "budget"),
    ],
)  # fmt: skip
async def test_what_is_refused_has_run_no_code(manifest: dict[str, Any], error: type[Exception], words: str) -> None:
    log: list[str] = []
    cls = define("reg_grants", log=log, **manifest)
    async with uxk.Kernel() as kernel:
        with pytest.raises(error, match=words):
            await kernel.modprobe("reg_grants")
        with pytest.raises(error, match=words):
            await kernel.insmod(cls)
        assert log == [] and kernel.lsmod() == [] and len(kernel.machine.caps) == 0
        kernel.available()  # one bad module hides no other
        kernel.depmod()


async def test_too_many_capabilities_are_refused_before_code_runs() -> None:
    log: list[str] = []
    _keep = define("reg_manycaps", log=log, capabilities=tuple(f"device:d{i}" for i in range(300)))
    async with uxk.Kernel() as kernel:
        with pytest.raises((ManifestError, CapabilityError)):
            await kernel.modprobe("reg_manycaps")
        assert log == [] and len(kernel.machine.caps) == 0


async def test_a_device_name_that_is_taken_is_refused_before_code_runs() -> None:
    log: list[str] = []
    _keep = [define("reg_owner"), define("reg_dev", log=log)]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_owner", instance="reg_dev0")
        with pytest.raises(UxkError, match="'reg_dev0' belongs to reg_dev0") as caught:
            await kernel.modprobe("reg_dev")
        assert caught.value.errno == errno.EEXIST
        assert log == [] and [row.name for row in kernel.lsmod()] == ["reg_dev0"]


async def test_the_sum_of_budgets_is_granted_not_more_and_comes_back() -> None:
    _keep = define("reg_half", budget=uxk.Budget(memory_bytes=1 << 19))
    async with uxk.Kernel(arena_bytes=1 << 20) as kernel:
        await kernel.modprobe("reg_half")
        await kernel.modprobe("reg_half", instance="reg_half2")
        with pytest.raises(BudgetError, match="0 of 1048576") as caught:
            await kernel.modprobe("reg_half", instance="reg_half3")
        assert caught.value.errno == errno.ENOMEM and lines(kernel, "ENOMEM")
        await kernel.rmmod("reg_half2")
        await kernel.modprobe("reg_half", instance="reg_half3")


@pytest.mark.parametrize("name", [5, None, "", "UPPER", "a/b", "x" * 56, "é"])
async def test_a_manifest_with_no_usable_name_is_refused(name: Any) -> None:
    cls = define(name)
    async with uxk.Kernel() as kernel:
        with pytest.raises(ManifestError):
            await kernel.insmod(cls)
        kernel.depmod()
        kernel.available()


async def test_a_class_without_a_manifest_or_with_something_else_is_refused() -> None:
    class Bare(uxk.Extension):
        pass

    class Wrong(uxk.Extension):
        manifest = {"name": "reg_wrong"}  # type: ignore[assignment]  # noqa: RUF012

    async with uxk.Kernel() as kernel:
        for cls in (Bare, Wrong):
            with pytest.raises(ManifestError, match="manifest"):
                await kernel.insmod(cls)


# --- insmod of a file ---

GOOD = '''
from __future__ import annotations
import uxk

class Params(uxk.Params):
    level: int = 1

class FileModule(uxk.Extension[Params]):
    """Comes from a file."""
    manifest = uxk.Manifest(name="reg_file", params=Params, version="2.1")

    def on_batch(self, ctx, requests):
        for request in requests:
            ctx.complete(request, result=self.params.level)

Alias = FileModule
'''


SECOND = GOOD.strip().partition("import annotations")[2].replace("FileModule", "Other")


async def test_insmod_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "reg-file.py"
    path.write_text(GOOD)
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(path, level="7")
        assert (await module.submit(b"")).result == 7
        assert kernel.modinfo("reg_file").filename == str(path)
        with pytest.raises(UxkError, match="already loaded") as caught:
            await kernel.insmod(str(path))
        assert caught.value.errno == errno.EEXIST
        await kernel.rmmod("reg_file")
        path.write_text(GOOD.replace('version="2.1"', 'version="2.10"'))
        assert (await kernel.insmod(path)).manifest.version == "2.10"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("syntax.py", "def broken(:\n", "SyntaxError"),
        ("none.py", "x = 1\n", "expected exactly one Extension with a manifest, found none"),
        ("two.py", GOOD + SECOND, "FileModule, Other"),
        ("import.py", "import uxk_there_is_no_such_module\n", "ModuleNotFoundError"),
        ("raises.py", "raise RuntimeError('boom')\n", "RuntimeError: boom"),
        ("exits.py", "raise SystemExit(3)\n", "SystemExit"),
        ("nul.py", "x = 'a\0b'\n", "null bytes"),
        ("text.txt", GOOD, "expected a .py file"),
        ("bare.py", "import uxk\nclass A(uxk.Extension): pass\n", "found none"),
        ("imported.py", "from uxk.module import Extension\n", "found none"),
    ],
)  # fmt: skip
async def test_insmod_of_a_bad_file_names_it_and_the_cause(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    modules = set(sys.modules)
    async with uxk.Kernel() as kernel:
        with pytest.raises(ModuleError, match=words) as caught:
            await kernel.insmod(path)
        assert name in str(caught.value) and kernel.lsmod() == []
    assert set(sys.modules) == modules


async def test_insmod_of_what_is_not_there(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        for path in (tmp_path / "missing.py", tmp_path, str(tmp_path / "a\0b.py")):
            with pytest.raises(NoSuchModule, match="no file"):
                await kernel.insmod(path)


async def test_insmod_of_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(bytes(range(128, 256)))
    async with uxk.Kernel() as kernel:
        with pytest.raises(ModuleError, match=r"binary\.py"):
            await kernel.insmod(path)


async def test_insmod_looks_for_no_dependencies_but_refuses_without_them() -> None:
    log: list[str] = []
    cls = define("reg_bare", log=log, depends=("reg_dep", "reg_dep2"))
    _keep = [define("reg_dep"), define("reg_dep2")]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("reg_dep")
        with pytest.raises(NoSuchModule, match="needs reg_dep2, not loaded"):
            await kernel.insmod(cls)
        assert log == []
        await kernel.modprobe("reg_dep2")
        await kernel.insmod(cls)
        with pytest.raises(uxk.InUse, match="reg_bare"):
            await kernel.rmmod("reg_dep")


# --- entry points ---


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with good and broken entry points on sys.path."""
    site = tmp_path / "site"
    info = site / "reg_dist-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reg-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[uxk.modules]\n"
        "reg-good = reg_good_module:Good\n"
        "reg_missing = reg_not_installed:Thing\n"
        "reg_noattr = reg_good_module:Nothing\n"
        "reg_noclass = reg_good_module:number\n"
        "reg_liar = reg_good_module:Good\n"
        "reg_exits = reg_exits_module:Gone\n"
        "reg_nomanifest = reg_good_module:Bare\n"
    )
    (site / "reg_good_module.py").write_text(
        "import uxk\nnumber = 5\nclass Bare(uxk.Extension): pass\n"
        "class Good(uxk.Extension):\n    '''Installed.'''\n"
        "    manifest = uxk.Manifest(name='reg-good', alias=('reg-nice',), version='3')\n"
    )
    (site / "reg_exits_module.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.syspath_prepend(str(site))
    declared.pop("reg_good", None)  # the last test's class may not have been collected yet
    catalog_module._entry_points.cache_clear()
    yield site
    catalog_module._entry_points.cache_clear()
    for name in ("reg_good_module", "reg_exits_module"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("installed")
async def test_entry_points_are_found_by_name_and_alias() -> None:
    async with uxk.Kernel() as kernel:
        assert (await kernel.modprobe("reg_good")).manifest.version == "3"
        assert (await kernel.modprobe("reg-nice")).name == "reg_good"
        assert kernel.modinfo("reg_nice").description == "Installed."


@pytest.mark.usefixtures("installed")
def test_a_module_is_imported_only_when_it_is_wanted() -> None:
    catalog = Catalog(ModprobeConfig())
    assert "reg_good" in catalog.names() and "reg_good_module" not in sys.modules
    catalog.graph_for("reg_good")
    assert "reg_good_module" in sys.modules and not catalog.broken


@pytest.mark.usefixtures("installed")
async def test_broken_entry_points_break_no_others() -> None:
    _keep = define("reg_local", depends=("reg_good",), softdep=uxk.Softdep(pre=("reg_missing",)))
    async with uxk.Kernel() as kernel:
        available = {row.name for row in kernel.available()}
        assert {"reg_good", "reg_local"} <= available
        bad = {"reg_missing", "reg_noattr", "reg_noclass", "reg_liar", "reg_exits", "reg_nomanifest"}
        assert not bad & available
        report = kernel.depmod()
        assert "reg_local: reg_good\n" in report.modules_dep and "alias reg-nice reg_good\n" in report.modules_alias
        assert all(any(name in line for line in report.problems) for name in bad), report.problems
        assert (await kernel.modprobe("reg-nice")).name == "reg_good"
        assert (await kernel.modprobe("reg_local")).name == "reg_local"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reg_missing", "reg_not_installed"), ("reg_noattr", "Nothing"), ("reg_noclass", r"is no uxk\.Extension"),
        ("reg_liar", "its manifest names 'reg-good'"), ("reg_exits", "SystemExit"), ("reg_nomanifest", "no manifest"),
    ],
)  # fmt: skip
async def test_a_broken_entry_point_says_every_time_what_is_wrong(name: str, words: str) -> None:
    async with uxk.Kernel() as kernel:
        for _ in range(2):
            with pytest.raises(ModuleError, match=words):
                await kernel.modprobe(name)
        assert kernel.lsmod() == []


# --- depmod, modinfo ---


async def test_depmod_writes_dependencies_and_aliases() -> None:
    _keep = [
        define("reg_d1", depends=("reg_d2",), alias=("reg-x*",)), define("reg_d2", depends=("reg_d3",)),
        define("reg_d3", binds=(uxk.Bind({"class": "block", "vendor": "reg*"}),)),
    ]  # fmt: skip
    async with uxk.Kernel() as kernel:
        report = kernel.depmod()
        assert "reg_d1: reg_d2 reg_d3\n" in report.modules_dep and "reg_d3:\n" in report.modules_dep
        assert "alias reg-x* reg_d1\n" in report.modules_alias
        bind = next(line for line in report.modules_alias.splitlines() if line.endswith(" reg_d3"))
        assert bind.startswith("alias uxk:")
        assert (await kernel.modprobe(bind.split()[1])).name == "reg_d3"


async def test_modinfo_tells_everything_of_the_manifest() -> None:
    _keep = define(
        "reg-info", params=Params, version="1.2", author="A", license="MIT", kind="both", driver_class="reg_class",
        depends=("reg_d",), alias=("reg_i",), capabilities=("kmsg:read",), softdep=uxk.Softdep(pre=("p",), post=("q",)),
        budget=uxk.Budget(memory_bytes=8192, queue_depth=16),
    )  # fmt: skip
    async with uxk.Kernel() as kernel:
        info = kernel.modinfo("reg_info")
        assert (info.name, info.version, info.author, info.license) == ("reg-info", "1.2", "A", "MIT")
        assert (info.kind, info.driver_class, info.description) == (
            "both",
            "reg_class",
            "Answers with its own payload.",
        )
        assert (info.depends, info.alias, info.capabilities) == (("reg_d",), ("reg_i",), ("kmsg:read",))
        assert (info.softdep, info.memory_bytes, info.queue_depth) == ("pre: p post: q", 8192, 16)
        assert info.filename == __file__
        depth = info.parameters[1]
        assert (depth.name, depth.type_text, depth.default_text, depth.help) == ("depth", "int", "8", "Slots.")
        assert "<= 64" in depth.constraint_text
        with pytest.raises(NoSuchModule):
            kernel.modinfo("reg_information")
