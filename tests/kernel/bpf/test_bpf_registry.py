"""Programs in a kernel: loaded, attached, pinned, run; who may, what they may call, what it costs."""

from __future__ import annotations

import errno
from typing import Any, ClassVar

import pytest
import trio

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.maps import ArrayMap, HashMap, InstanceArrayMap, RingBuffer
from uxk.bpf.proto import Spec, body
from uxk.bpf.verifier import verify
from uxk.errors import CapabilityError, UsageError
from uxk.kernel.bpf.charge import INSN_PS, longest
from uxk.kernel.bpf.functions import KFUNCS
from uxk.kernel.bpf.loaded import Loaded
from uxk.uapi.ml import Mode, ModelState

ROOT = "/sys/fs/bpf"
SPEC = body(16)
SEVEN = assemble("r0 = 7\nexit\n")


class Place:
    """An attach point for tests."""

    def __init__(self, name: str = "test/here", spec: Spec = SPEC, *, commands: bool = False) -> None:
        self.name, self.spec, self.commands, self.exclusive = name, spec, commands, True
        self.there: list[Loaded] = []
        self.gone = False
        self.why = ""

    def attach(self, program: Loaded, instead: Loaded | None = None) -> None:
        self.there.append(program)

    def detach(self, program: Loaded, why: str) -> None:
        self.there.remove(program)
        self.why = why


class Owner(uxk.Extension):
    """Has the capability, and nothing else."""

    manifest = uxk.Manifest(
        name="owner", version="1", capabilities=("bpf:test/*:write,submit",),
        restart=uxk.RestartPolicy(mode="temporary"),
    )  # fmt: skip
    ctx: ClassVar[uxk.Context]

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()


def kernel_with(**options: Any) -> tuple[uxk.Kernel, Place]:
    kernel, place = uxk.Kernel(seed=3), Place(**options)
    kernel.bpf.add_point(place)
    return kernel, place


def test_a_program_is_loaded_attached_run_and_gone_again() -> None:
    kernel, place = kernel_with()
    bpf, read = kernel.bpf, kernel.sysfs.read
    program = bpf.load(SEVEN, "test/here", name="seven")
    assert read(f"{ROOT}/prog/1/name") == "seven" and read(f"{ROOT}/prog/1/code/0").strip() == SEVEN.hex()
    bpf.attach(program)
    assert place.there == [program] and read(f"{ROOT}/prog/1/attached") == "test/here"
    assert program.run(bytes(16)) == 7
    assert read(f"{ROOT}/prog/1/runs") == "1" and read(f"{ROOT}/prog/1/charged_ns") == f"{2 * INSN_PS // 1000}"
    with pytest.raises(UsageError, match="in use: test/here") as busy:
        bpf.unload(program)
    assert busy.value.errno == errno.EBUSY
    with pytest.raises(UsageError, match=r"program 1 \(seven\) is attached to test/here"):
        bpf.attach(bpf.load(SEVEN, "test/here"))
    bpf.detach(program)
    bpf.unload(program)
    assert not place.there and not kernel.sysfs.exists(f"{ROOT}/prog/1")
    texts = [record.text for record in kernel.kmsg.records(source="bpf")]
    assert texts[0] == "program 1 (seven) loaded for test/here: 2 instructions, at most 2 a run"
    assert texts[-1] == "program 1 (seven) unloaded"


def test_what_cannot_be_shown_to_be_safe_is_not_loaded() -> None:
    kernel, _ = kernel_with()
    with pytest.raises(VerifierError, match=r"insn 0: r0 = \*\(u64 \*\)\(r1 \+ 16\)"):
        kernel.bpf.load(assemble("r0 = *(u64 *)(r1 + 16)\nexit\n"), "test/here")
    with pytest.raises(VerifierError, match="may_goto has no bound"):
        kernel.bpf.load(assemble("r0 = 0\nagain:\nmay_goto out\ngoto again\nout:\nexit\n"), "test/here")
    with pytest.raises(UsageError, match=r"no attach point 'test/her'.*'test/here'"):
        kernel.bpf.load(SEVEN, "test/her")
    with pytest.raises(UsageError, match="name 'A b'"):
        kernel.bpf.load(SEVEN, "test/here", name="A b")
    assert not kernel.bpf.programs and not kernel.sysfs.exists(ROOT)


def test_a_program_fits_only_where_the_same_is_asked() -> None:
    kernel, _ = kernel_with()
    same, other = Place("test/same"), Place("test/other", body(8))
    kernel.bpf.add_point(same)
    kernel.bpf.add_point(other)
    program = kernel.bpf.load(SEVEN, "test/here")
    kernel.bpf.attach(program, "test/same")
    with pytest.raises(UsageError, match="test/other asks for something else"):
        kernel.bpf.attach(program, "test/other")
    kernel.bpf.remove_point("test/same", "gone")
    assert not program.attached and same.why == "gone"


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("r0 = 1\nexit", 2),
        ("r0 = *(u64 *)(r1 + 0)\nif r0 s> 5 goto a\nr0 = 1\nr0 += 2\nexit\na:\nr0 = 0\nexit", 5),
        ("r0 = 0\nr3 = 0\nagain:\nr3 += 1\nif r3 < 10 goto again\nexit", 23),
        ("call pc+1\nexit\nr0 = 3\nr0 += 1\nexit", 5),
    ],
)  # fmt: skip
def test_the_longest_way(text: str, bound: int) -> None:
    assert longest(verify(assemble(text), body(16))) == bound


def test_helpers_are_the_kernels_own() -> None:
    def drawn(seed: int) -> list[int | None]:
        kernel = uxk.Kernel(seed=seed)
        kernel.bpf.add_point(Place())
        program = kernel.bpf.load(assemble("call 7\nexit"), "test/here", name="dice")
        return [program.run(bytes(16)) for _ in range(4)]

    assert drawn(1) == drawn(1) != drawn(2) and len(set(drawn(1))) == 4
    kernel, _ = kernel_with()
    kernel.machine.now_ns = 12345
    assert kernel.bpf.load(assemble("call 5\nexit"), "test/here").run(bytes(16)) == 12345


def test_maps_are_shared_shown_and_freed_with_their_last_user() -> None:
    kernel, _ = kernel_with()
    bpf = kernel.bpf
    counts = bpf.add_map(ArrayMap(8, 2, "counts"))
    code = assemble("""
        *(u32 *)(r10 - 4) = 1
        r1 = map[fd:5]
        r2 = r10
        r2 += -4
        call 1
        if r0 == 0 goto out
        r1 = 1
        lock *(u64 *)(r0 + 0) += r1
        r0 = *(u64 *)(r0 + 0)
    out:
        exit
    """)
    one, two = (bpf.load(code, "test/here", {5: counts}, name) for name in ("one", "two"))
    assert [one.run(bytes(16)), two.run(bytes(16)), one.run(bytes(16))] == [1, 2, 3]
    assert kernel.sysfs.read(f"{ROOT}/map/1/entries") == f"0 {'00' * 8}\n1 03{'00' * 7}"
    assert kernel.sysfs.read(f"{ROOT}/map/1/programs") == "1\n2"
    bpf.unload(one)
    assert bpf.maps
    bpf.pin(counts, "kept")
    bpf.unload(two)
    assert kernel.sysfs.read(f"{ROOT}/pinned/kept/name") == "counts"
    kernel.sysfs.write(f"{ROOT}/unpin", "kept")
    assert not bpf.maps and not kernel.sysfs.exists(f"{ROOT}/map/1")


def test_per_instance_values_and_records() -> None:
    kernel, _ = kernel_with()
    bpf = kernel.bpf
    mine, ring = bpf.add_map(InstanceArrayMap(8, 1, "mine")), bpf.add_map(RingBuffer(4096, "news"))
    program = bpf.load(
        assemble("""
        *(u32 *)(r10 - 4) = 0
        r1 = map[fd:1]
        r2 = r10
        r2 += -4
        call 1
        if r0 == 0 goto out
        r6 = *(u64 *)(r0 + 0)
        r6 += 1
        *(u64 *)(r0 + 0) = r6
        *(u64 *)(r10 - 16) = r6
        r1 = map[fd:2]
        r2 = r10
        r2 += -16
        r3 = 8
        r4 = 0
        call 130
        r0 = r6
    out:
        exit
    """),
        "test/here",
        {1: mine, 2: ring},
    )
    assert [program.run(bytes(16), who) for who in (1, 2, 2, 1, 1)] == [1, 1, 2, 2, 3]
    assert isinstance(mine.map, InstanceArrayMap) and isinstance(ring.map, RingBuffer)
    assert [int.from_bytes(v, "little") for _, v in sorted(mine.map.of(0).items())] == [0, 3, 2]
    assert [record[0] for record in ring.map.drain()] == [1, 1, 2, 2, 3]
    assert kernel.sysfs.read(f"{ROOT}/map/1/entries").splitlines()[1] == f"0 1 {(3).to_bytes(8, 'little').hex()}"


def model_text(*calls: str, release: bool = True) -> bytes:
    """Looks model 1 up, calls kfuncs on it, and returns what the last one says."""
    lines = ["r1 = 1", f"call kfunc#{KFUNCS['bpf_ml_model_lookup']}", "if r0 == 0 goto none", "r6 = r0", "r7 = 0"]
    for call in calls:
        lines += ["r1 = r6", f"call kfunc#{KFUNCS[call]}", "r7 = r0"]
    lines += ["r1 = r6", f"call kfunc#{KFUNCS['bpf_ml_model_release']}"] if release else []
    return assemble("\n".join([*lines, "r0 = r7", "exit", "none:", "r0 = -1", "exit"]))


async def test_models_are_looked_up_and_released() -> None:
    kernel, _ = kernel_with(commands=True)
    program = kernel.bpf.load(model_text("bpf_ml_model_get_mode"), "test/here")
    assert program.run(bytes(16)) == -1
    model = kernel.create_model("lfs", "lfs0")
    assert program.run(bytes(16)) == Mode.LEARNING
    stop = kernel.bpf.load(model_text("bpf_ml_model_stop", "bpf_ml_model_get_state"), "test/here")
    async with kernel:
        assert stop.run(bytes(16)) == model.state != ModelState.STOPPED
        await kernel.run()
        assert model.state == ModelState.STOPPED
        stop.run(bytes(16))
        await kernel.run()
        assert "bpf_ml_model_stop of model lfs0: -" in kernel.kmsg.records(source="bpf")[-1].text
    with pytest.raises(VerifierError, match="insn"):
        kernel.bpf.load(model_text("bpf_ml_model_get_id", release=False), "test/here")
    with pytest.raises(VerifierError, match="expected an object that was looked up"):
        kernel.bpf.load(assemble(f"call kfunc#{KFUNCS['bpf_ml_model_get_id']}\nexit"), "test/here")
    kernel.bpf.add_point(Place("test/decision"))
    kernel.bpf.load(model_text("bpf_ml_model_get_mode"), "test/decision")
    with pytest.raises(VerifierError, match=f"kfunc {KFUNCS['bpf_ml_model_stop']} may not be called here"):
        kernel.bpf.load(model_text("bpf_ml_model_stop"), "test/decision")


def test_references_that_a_stopped_run_holds_are_given_back() -> None:
    kernel, _ = kernel_with(commands=True)
    model = kernel.create_model("lfs", "lfs0")
    program = kernel.bpf.load(model_text("bpf_ml_model_get_mode"), "test/here")
    kfunc = KFUNCS["bpf_ml_model_get_mode"]
    program.program.machine.kfuncs = {**program.program.machine.kfuncs, kfunc: lambda *_: 1 // 0}
    heard: list[str] = []
    program.on_fault = lambda _, why: heard.append(why)
    for _ in range(1100):  # more than there may be at a time
        assert program.run(bytes(16)) is None
    assert program.faults == len(heard) == 1100 and heard[0].startswith("ZeroDivisionError")
    good = kernel.bpf.load(model_text("bpf_ml_model_get_id"), "test/here")
    assert good.run(bytes(16)) == model.id


async def test_an_owner_needs_the_right_and_takes_its_programs_along_unless_they_are_pinned() -> None:
    kernel, place = kernel_with()
    async with kernel:
        owner, stranger = await kernel.insmod(Owner), await kernel.insmod(Owner, instance="stranger")
        bpf, agents = kernel.bpf, kernel.agents
        bpf.add_point(Place("other/here"))
        with pytest.raises(CapabilityError, match="does not ask for bpf:other/here:write"):
            bpf.load(SEVEN, "other/here", owner=agents["owner"])
        table = bpf.add_map(HashMap(4, 8, 4, "table"), agents["owner"])
        one = bpf.load(SEVEN, "test/here", {1: table}, owner=agents["owner"])
        bpf.attach(one)
        two = bpf.load(SEVEN, "test/here", name="two", owner=agents["stranger"])
        bpf.pin(two, "two")
        await kernel.rmmod(owner.name)
        assert place.why == "owner is gone" and not place.there and one.id not in bpf.programs and not bpf.maps
        bpf.attach(two)
        await kernel.rmmod(stranger.name)
        assert place.there == [two] and kernel.sysfs.read(f"{ROOT}/pinned/two/owner") == "stranger"
        bpf.unpin("two")
        assert not place.there and not bpf.programs


async def test_runs_by_an_attribute() -> None:
    kernel, _ = kernel_with()
    program = kernel.bpf.load(assemble("r2 = *(u8 *)(r1 + 0)\n*(u8 *)(r1 + 1) = r2\nr0 = r2\nexit"), "test/here")
    path = f"{ROOT}/prog/{program.id}"
    kernel.sysfs.write(f"{path}/run", "2a" + "00" * 15)
    assert kernel.sysfs.read(f"{path}/run") == f"42\n2a2a{'00' * 14}"
    for text, why in (("2a", "takes 16"), ("zz", "hexadecimal")):
        with pytest.raises(uxk.errors.TreeError, match=why):
            kernel.sysfs.write(f"{path}/run", text)
    kernel.sysfs.write(f"{path}/pin", "echo")
    with pytest.raises(uxk.errors.TreeError, match="taken"):
        kernel.sysfs.write(f"{path}/pin", "echo")
