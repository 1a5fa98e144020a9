"""``uxk fault`` against a kernel in this process, behind its socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

import uxk
from uxk.bridges.control_server import ControlServer
from uxk.cli import main
from uxk.cli.common import UsageExit
from uxk.cli.fault import PLAN, plan_row, row_of, written
from uxk.faults.text import LiveFaults


class Faulty(uxk.Extension):
    """Keeps rules as they are written, numbered; refuses those with a word ``bad``.  It has a link, too."""

    manifest = uxk.Manifest(name="cf-faulty", license="MIT", kind="driver", driver_class="block")

    def setup(self, ctx: uxk.Context) -> None:
        self.rules: dict[str, str] = {}
        self.writes, self.outcome = 0, "ok"
        ctx.set_attribute("link", "up", writable=True)
        ctx.set_attribute("control", "", writable=True)
        self.slow: dict[str, str] = {}
        self.publish(ctx)

    def publish(self, ctx: uxk.Context) -> None:
        lines = (f"add id={number} {rule} # matched=7 fired=2" for number, rule in self.rules.items())
        ctx.set_attribute("faults", "\n".join(lines), writable=True)
        ctx.set_attribute("faults_status", f"{self.writes} {self.outcome}")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.name == "link":
            ctx.set_attribute("link", event.value.decode(), writable=True)
            return
        if event.name == "control":
            what, _, last = event.value.decode().rpartition(" ")
            self.slow[what] = last
            lines = [f"{what} {last}" for what, last in self.slow.items() if last not in ("1000000", "off")]
            ctx.set_attribute("control", "\n".join(lines), writable=True)
            return
        word, _, rest = event.value.decode().partition(" ")
        self.writes += 1
        self.outcome = "ok"
        if word == "rm":
            del self.rules[rest]
        elif "bad" in rest:
            self.outcome = f"error: {rest!r}: expected something better"
        else:
            self.rules[str(self.writes)] = rest
        self.publish(ctx)


class Sound(uxk.Extension):
    """Publishes nothing."""

    manifest = uxk.Manifest(name="cf-sound", license="MIT", kind="driver", driver_class="block")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests)


Command = Callable[..., Awaitable[int]]


@pytest.fixture
async def command(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Command]:
    """``await command("list")`` runs ``uxk fault list`` and returns its exit code."""
    path = tmp_path / "s"
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.modprobe("cf-faulty")
        await kernel.modprobe("cf-sound")
        LiveFaults(kernel)
        await nursery.start(ControlServer(kernel, path).serve)

        async def run(*words: str) -> int:
            return await trio.to_thread.run_sync(main, ["-k", str(path), "fault", *words])

        yield run
        nursery.cancel_scope.cancel()


async def test_a_rule_of_the_module(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("list") == 0
    assert capsys.readouterr() == ("", "")
    assert await command("add", "cf-faulty", "opcode=read", "action=drop") == 0
    assert capsys.readouterr() == ("cf_faulty: fault 1: opcode=read action=drop\n", "")
    assert await command("add", "cf_faulty", "bad=1") == 1
    assert capsys.readouterr() == ("", "uxk: fault: 'bad=1': expected something better [EINVAL]\n")
    assert await command("add", "cf-faulty", "latency", "2ms", "--json") == 0
    row = {"module": "cf_faulty", "id": "3", "rule": "action=delay delay_ns=2ms", "matched": 7, "fired": 2}
    assert json.loads(capsys.readouterr().out) == row | {"source": "faults"}
    assert await command("rm", "cf-faulty", "1") == 0
    assert await command("rm", "cf-faulty", "1") == 1
    assert "no fault '1', there are: 3" in capsys.readouterr().err
    assert await command("list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "module     id  matched  fired  rule", "cf_faulty  3         7      2  action=delay delay_ns=2ms",
    ]  # fmt: skip


async def test_faults_between_kernel_and_instance_and_a_link(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command("add", "cf-sound", "kind=delay", "delay_ns=1h") == 0
    assert capsys.readouterr().out == "cf_sound: fault delay-0: kind=delay delay_ns=3600000000000\n"
    assert await command("add", "cf-faulty", "link", "down") == 0
    assert capsys.readouterr().out == "cf_faulty: fault link: link down\n"
    assert await command("list", "--json") == 0
    assert [(row["module"], row["id"]) for row in json.loads(capsys.readouterr().out)] == [
        ("cf_faulty", "link"), ("cf_sound", "delay-0"),
    ]  # fmt: skip
    assert await command("rm", "cf-sound", "delay-0") == 0
    assert await command("rm", "cf-faulty", "link") == 0
    assert await command("list") == 0
    assert capsys.readouterr() == ("", "")


async def test_flash_that_is_slow(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("add", "cf-faulty", "slow-die", "3", "1.5") == 0
    assert capsys.readouterr().out == "cf_faulty: fault slow-die-3: slow-die 3 1.5\n"
    assert await command("add", "cf-faulty", "throttle", "2") == 0
    assert capsys.readouterr().out == "cf_faulty: fault throttle: throttle 2\n"
    assert await command("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["rule"], row["source"]) for row in rows] == [
        ("slow-die-3", "slow-die 3 1.5", "control"), ("throttle", "throttle 2", "control"),
    ]  # fmt: skip
    assert await command("rm", "cf-faulty", "slow-die-3", "throttle") == 0
    assert await command("list") == 0
    assert capsys.readouterr() == ("", "")


async def test_flash_of_a_real_device(
    tmp_path: Path, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        await kernel.modprobe("nvme", size="16MiB", medium="ftl")
        await kernel.modprobe("nvme", size="1MiB", instance="plain")
        await nursery.start(ControlServer(kernel, tmp_path / "s").serve)

        async def run(*words: str) -> tuple[int, str]:
            code = await trio.to_thread.run_sync(main, ["-k", str(tmp_path / "s"), "fault", *words])
            return code, "".join(capsys.readouterr())

        assert await run("add", "nvme", "slow-die", "0", "20") == (0, "nvme: fault slow-die-0: slow-die 0 20\n")
        assert await run("add", "nvme", "slow-die", "0", "30") == (0, "nvme: fault slow-die-0: slow-die 0 30\n")
        assert await run("add", "nvme", "throttle", "2") == (0, "nvme: fault throttle: throttle 2\n")
        code, text = await run("add", "nvme", "slow-die", "9999", "2")
        assert code == 1 and "9999: expected 0 to" in text
        code, text = await run("add", "plain", "throttle", "2")
        assert code == 1 and "medium=ftl" in text
        assert (await run("rm", "nvme", "throttle", "slow-die-0"))[0] == 0
        assert await run("list") == (0, "")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "cf-faluty", "a=b"], "'cf-faluty' is not loaded (did you mean 'cf_faulty'?)"),
        (["list", "cf-faluty"], "'cf-faluty' is not loaded"),
        (
            ["add", "cf-sound", "latency", "1ms"],
            "cf-sound publishes no attribute 'faults': it has no faults of its own",
        ),
        (["add", "cf-sound", "link", "up"], "cf-sound publishes no attribute 'link': cf_faulty does ["),
        (["add", "cf-sound", "slow-die", "1", "2"], "cf-sound publishes no attribute 'control': cf_faulty does"),
        (
            ["add", "cf-sound", "namespace", "rm", "1"],
            "publishes no attribute 'namespaces': no module does that is loaded; nvme would [",
        ),
        (["add", "cf_sound0n1", "a=b"], "is not loaded (a device of 'cf_sound'? faults are a module's) [ENOENT]"),
        (["add", "cf-sound", "kind=hang", "duration=1s"], "'duration=1s': no such key"),
    ],
)
async def test_what_cannot_be(
    command: Command, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert await command(*words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required"), (["add"], "add: expected MODULE and a RULE"), (["rm", "m"], "rm: expected MODULE and an ID"),
        (["list", "a", "b"], "expected at most a MODULE"), (["ls"], "invalid choice"),
        (["add", "nvme", "media-eror"], "did you mean 'media-error'"),
        (["add", "nvme", "media-error"], "media-error: expected LBA[-LBA]"),
        (["add", "nvme", "latency", "2"], "latency 2: expected TIME with its unit, for example 2ms"),
        (["add", "nvme", "slow-die", "3"], "'slow-die 3': expected slow-die DIE FACTOR, a number and 1 to 1000"),
        (["add", "nvme", "slow-die", "3", "0.5"], "expected slow-die DIE FACTOR"),
        (["add", "nvme", "slow-channel", "x", "2"], "expected slow-channel CHANNEL FACTOR"),
        (["add", "nvme", "slow-die", "3", "1001"], "expected slow-die DIE FACTOR"),
        (["add", "nvme", "throttle", "3"], "'throttle 3': expected throttle 0|1|2|off"),
        (["add", "nvme", "latency", "1ms", "slow"], "'slow': expected KEY=VALUE behind latency"),
        (["add", "nvme", "link", "sideways"], "expected link down or link up"),
        (["add", "nvme", "namespace", "add"], "expected namespace add SIZE or namespace rm NSID"),
        (["list"], "needs a running kernel"),
    ],
)  # fmt: skip
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.delenv("UXK_SOCKET", raising=False)
    assert main(["fault", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("a=1 b=2", "faults", "add a=1 b=2"),
        ("media-error 5-9 count=3", "faults",
         "add opcode=read action=status status=media-error dnr=1 lba=5-9 count=3"),
        ("write-error 5 dnr=0", "faults", "add opcode=write action=status status=write-fault dnr=0 lba=5"),
        ("power-loss", "faults", "add count=1 action=powerloss"),
        ("power-loss after=10", "faults", "add count=1 action=powerloss after=10"),
        ("slow-die 3 20", "control", "slow_die 3 20000000"),
        ("slow-channel 0 1.25", "control", "slow_channel 0 1250000"),
        ("throttle off", "control", "throttle off"),
        ("link up", "link", "up"),
        ("namespace add 64MiB", "namespaces", "add 64MiB"),
        ("namespace rm 2", "namespaces", "rm 2"),
        ("at_ns=5 kind=crash", PLAN, "add module=nvme at_ns=5 kind=crash"),
    ],
)  # fmt: skip
def test_what_is_written_where(text: str, attribute: str, value: str) -> None:
    assert written("nvme", text.split()) == (attribute, value)


def test_an_unknown_word_is_explained() -> None:
    with pytest.raises(UsageExit, match="expected KEY=VALUE or one of media-error, write-error, latency"):
        written("nvme", ["explode"])


def test_lines_of_any_form_are_shown() -> None:
    assert row_of("m", "add id=1 a=b c=d # matched=4 fired=2")[:5] == ("m", "1", "a=b c=d", 4, 2)
    assert row_of("m", "add a=b")[:5] == ("m", "", "a=b", None, None)
    assert row_of("m", "something else")[:3] == ("m", "", "something else")
    assert plan_row("add kind=drop module=m name=d count=3 # fired=1")[:5] == ("m", "d", "kind=drop count=3", None, 1)
