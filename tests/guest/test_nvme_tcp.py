"""A stock Linux kernel mounts uxk's NVMe device over TCP: file systems, fio, events, resets, lost paths, faults.

Every test connects anew, and afterwards holds what the export has moved against what the driver has, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from guestbox.machine import HOST, Guest
from guestbox.service import Service

pytestmark = pytest.mark.xdist_group("guest")

NQN = "nqn.2026-11.example.uxk:guest"
SIZE_BYTES = 320 << 20
"""Of each of two namespaces; mkfs.xfs wants 300 MiB."""
DRIVER, EXPORT = "nvme", "nvmet_tcp"
NODE, CONTROLLER = "/dev/nvme0n1", "/dev/nvme0"
FIO = (
    f"fio --name=job --filename={NODE} --ioengine=libaio --direct=1 --bs=4k --iodepth=16 --verify=crc32c "
    "--output-format=json "
)


@pytest.fixture(scope="module")
def target(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A kernel with a device in memory, exported; it has a volatile write cache, so that the guest must flush."""
    words = ["nvme-tcp", DRIVER, "-p", f"size={2 * SIZE_BYTES}", "-p", "namespaces=2", "-p", "write_cache=16MiB"]
    words += ["--tcp", "127.0.0.1:0", "--nqn", NQN, "-e", f"advertise={HOST}"]
    with Service(tmp_path_factory.mktemp("uxk"), *words) as service:
        yield service


def port_of(target: Service) -> int:
    """Where it listens."""
    return int(target.said["address"].rpartition(":")[2])


Connect = Callable[..., str]


@pytest.fixture
def connect(guest: Guest, target: Service) -> Iterator[Connect]:
    """Connects with options of nvme-cli, and waits for the disk; disconnects in the end, and compares accounts."""

    def call(*options: str) -> str:
        guest.run(f"nvme connect -t tcp -a {HOST} -s {port_of(target)} -n {NQN} -i 2 {' '.join(options)}")
        guest.until(f"test -b {NODE} && dd if={NODE} of=/dev/null bs=4k count=1 iflag=direct", seconds=20)
        return NODE

    yield call
    guest.run("umount /mnt", ok=None)
    guest.run("nvme disconnect-all")
    driver, export = target.account(DRIVER), target.account(EXPORT)
    for figure in ("read_bytes", "written_bytes"):
        assert driver[figure] == export[f"io_{figure}"]
    assert driver["requests"] == driver["completed"] == export["submitted"]
    assert driver["inflight"] == 0 and not driver["rejects"] and not export["rejects"]


def nvme_json(guest: Guest, command: str) -> Any:
    """What an nvme-cli verb prints as JSON."""
    return json.loads(guest.run(f"nvme {command} -o json"))


def disk_figures(guest: Guest) -> dict[str, int]:
    """What the guest's block layer has counted on the one path (Documentation/block/stat.rst)."""
    words = guest.run("cat /sys/block/nvme0c0n1/stat").split()
    return {
        "reads": int(words[0]),
        "read_bytes": int(words[2]) * 512,
        "writes": int(words[4]),
        "written_bytes": int(words[6]) * 512,
    }


@contextmanager
def fault(target: Service, rule: str) -> Iterator[None]:
    """A device fault for as long as the block lasts."""
    number = target.json("fault", "add", DRIVER, *rule.split())["id"]
    try:
        yield
    finally:
        target.uxk("fault", "rm", DRIVER, number)


# --- what it is -----------------------------------------------------------------------------------------


def test_discovery_leads_to_the_subsystem(guest: Guest, target: Service, connect: Connect) -> None:
    log = nvme_json(guest, f"discover -t tcp -a {HOST} -s {port_of(target)}")
    (record,) = [each for each in log["records"] if each["subnqn"] == NQN]
    assert (record["trtype"], record["subtype"], record["traddr"], record["trsvcid"]) == (
        "tcp", "nvme subsystem", HOST, str(port_of(target)),
    )  # fmt: skip
    guest.run(f"nvme connect-all -t tcp -a {HOST} -s {port_of(target)}")
    guest.until("test -b /dev/nvme?n1")
    assert NQN in guest.run("nvme list-subsys")


def test_only_a_host_on_the_list_is_served(guest: Guest, target: Service, connect: Connect) -> None:
    friend, stranger = (f"nqn.2026-11.example.uxk:{name}" for name in ("friend", "stranger"))
    allow, where = f"/sys/module/{EXPORT}/parameters/allow", f"-t tcp -a {HOST} -s {port_of(target)}"
    target.write(allow, friend)
    try:
        guest.fails(f"nvme connect {where} -n {NQN} --hostnqn={stranger}")
        assert f"Connect for subsystem {NQN} is not allowed, hostnqn: {stranger}" in guest.dmesg()
        connect(f"--hostnqn={friend}")
        discover = f"nvme discover {where} --hostnqn="
        assert NQN in guest.run(discover + friend) and NQN not in guest.run(discover + stranger)
        assert f"{friend} cntlid=" in target.read(f"/sys/module/{EXPORT}/attributes/hosts")
    finally:
        target.write(allow, "")
    guest.run("nvme disconnect-all")
    connect(f"--hostnqn={stranger}")


def test_nvme_cli_and_the_kernel_read_the_identity(guest: Guest, connect: Connect) -> None:
    connect()
    devices = {each["DevicePath"]: each for each in nvme_json(guest, "list")["Devices"]}
    assert (devices[NODE]["PhysicalSize"], devices[NODE]["SectorSize"]) == (SIZE_BYTES, 512)
    described = guest.run(f"nvme id-ctrl -H {CONTROLLER}")
    assert "I/O Controller" in described and "Multi Controller" in described
    controller = nvme_json(guest, f"id-ctrl {CONTROLLER}")
    assert controller["subnqn"] == NQN and controller["mdts"] > 0 and controller["kas"] > 0
    namespace = nvme_json(guest, f"id-ns {NODE}")
    assert namespace["nsze"] * 512 == SIZE_BYTES
    assert guest.run("cat /sys/block/nvme0n1/size").strip() == str(SIZE_BYTES // 512)
    assert int(guest.run("cat /sys/block/nvme0n1/queue/discard_max_bytes")) > 0
    assert nvme_json(guest, f"list-ns {CONTROLLER}")["nsid_list"] == [{"nsid": 1}, {"nsid": 2}]
    assert nvme_json(guest, f"fw-log {CONTROLLER}")
    assert guest.run(f"nvme ns-descs {NODE}").count(":") > 2


def test_health_follows_the_work(guest: Guest, connect: Connect) -> None:
    connect()
    before = nvme_json(guest, f"smart-log {CONTROLLER}")
    assert before["critical_warning"] == 0 and 273 < before["temperature"] < 373
    guest.run(f"dd if=/dev/zero of={NODE} bs=64k count=64 oflag=direct")
    guest.run(f"dd if={NODE} of=/dev/null bs=64k count=32 iflag=direct")
    after = nvme_json(guest, f"smart-log {CONTROLLER}")
    grown = {name: int(after[name]) - int(before[name]) for name in after if name.startswith(("host_", "data_"))}
    assert (grown["host_write_commands"], grown["host_read_commands"]) == (64, 32)
    assert grown["data_units_written"] >= (64 << 16) // 512_000 and grown["data_units_read"] >= (32 << 16) // 512_000


# --- data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "check"),
    [("mkfs.ext4 -q", "ext4", "e2fsck -fn"), ("mkfs.xfs -q -f", "xfs", "xfs_repair -n")],
)
def test_a_file_system_lives_on_it(make: str, kind: str, check: str, guest: Guest, connect: Connect) -> None:
    connect()
    guest.run(f"{make} {NODE} && mount -t {kind} {NODE} /mnt")
    guest.run("dd if=/dev/urandom of=/tmp/random bs=64k count=128; mkdir -p /mnt/a/b")
    guest.run("cp /tmp/random /bin/nvme /mnt/a/b; for i in $(seq 50); do echo $i >/mnt/a/$i; done; rm /mnt/a/7; sync")
    sums = guest.run("cd /mnt && find . -type f | sort | xargs sha256sum")
    guest.run("fstrim -v /mnt; umount /mnt")
    guest.run("nvme disconnect-all")
    connect()
    guest.run(f"{check} {NODE}")
    guest.run(f"mount -t {kind} -o ro {NODE} /mnt")
    assert guest.run("cd /mnt && find . -type f | sort | xargs sha256sum") == sums
    assert guest.run("sha256sum </tmp/random").split()[0] in sums
    guest.run("umount /mnt")


def test_discarded_and_zeroed_blocks_read_as_zeros(guest: Guest, connect: Connect) -> None:
    connect()
    guest.run("dd if=/dev/urandom of=/tmp/pattern bs=64k count=32")
    whole, half = f"dd if={NODE} bs=64k count=32 iflag=direct", f"dd if={NODE} bs=64k skip=16 count=16 iflag=direct"
    pattern = guest.run("sha256sum </tmp/pattern")
    second_half = guest.run("tail -c 1048576 /tmp/pattern | sha256sum")
    for how in ("", "-z"):
        guest.run(f"dd if=/tmp/pattern of={NODE} bs=64k oflag=direct")
        assert guest.run(f"{whole} 2>/dev/null | sha256sum") == pattern
        guest.run(f"blkdiscard -f {how} -l {1 << 20} {NODE}")
        assert guest.run(f"{whole} 2>/dev/null | head -c 1048576 | tr -d '\\0' | wc -c").strip() == "0"
        assert guest.run(f"{half} 2>/dev/null | sha256sum") == second_half
    guest.run(f"blkdiscard -f {NODE}")


@pytest.mark.parametrize("digests", ["", "--hdr-digest --data-digest"], ids=["plain", "digests"])
def test_fio_finds_what_it_wrote(digests: str, guest: Guest, connect: Connect) -> None:
    connect(digests)
    report = guest.run(f"{FIO} --rw=randrw --size=6m --verify_backlog=256")
    (job,) = json.loads(report[report.index("{") :])["jobs"]
    assert job["error"] == 0 and job["write"]["total_ios"] > 500
    guest.run(f"{FIO} --rw=write --bs=128k --size=4m")


# --- accounts ---------------------------------------------------------------------------------------------


def test_accounts_agree_with_what_the_guest_did(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    guest.run(f"echo 3 >/proc/sys/vm/drop_caches; dd if={NODE} of=/dev/null bs=4k count=1 iflag=direct")
    before, driver = disk_figures(guest), target.account(DRIVER)
    guest.run(f"dd if={NODE} of=/dev/null bs=4k count=500 iflag=direct")
    guest.run(f"dd if=/dev/zero of={NODE} bs=16k count=100 oflag=direct")
    guest.run(f"dd if={NODE} of=/dev/null bs=128k count=20 iflag=direct")
    after, driver_after = disk_figures(guest), target.account(DRIVER)
    done = {figure: after[figure] - before[figure] for figure in after}
    assert done["reads"] >= 520 and done["writes"] >= 100
    assert driver_after["read_bytes"] - driver["read_bytes"] == done["read_bytes"] == 500 * 4096 + 20 * 131072
    assert driver_after["written_bytes"] - driver["written_bytes"] == done["written_bytes"] == 100 * 16384


# --- events -------------------------------------------------------------------------------------------------


def test_namespaces_come_and_go(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    second = f"{NODE[:-1]}2"
    guest.until(f"test -b {second}")
    target.uxk("fault", "add", DRIVER, "namespace", "rm", "2")
    guest.until(f"! test -e {second}", seconds=20)
    target.uxk("fault", "add", DRIVER, "namespace", "add", "16MiB")
    guest.until(f"test -b {second}", seconds=20)
    guest.run(f"mkfs.ext4 -q {second} && e2fsck -fn {second}")
    guest.run(f"nvme delete-ns {CONTROLLER} -n 2")
    guest.until(f"! test -e {second}", seconds=20)
    blocks = (32 << 20) // 512
    guest.run(f"nvme create-ns {CONTROLLER} --nsze={blocks} --ncap={blocks} --flbas=0")
    guest.run(f"nvme attach-ns {CONTROLLER} -n 2 -c $(nvme id-ctrl {CONTROLLER} | sed -n 's/^cntlid *: *//p')")
    guest.until(f"test -b {second}", seconds=20)
    assert guest.run(f"cat /sys/block/{second[5:]}/size").strip() == str(blocks)
    guest.run(f"dd if={NODE} of=/dev/null bs=4k count=10 iflag=direct")


def test_a_reset_in_the_middle_loses_nothing(guest: Guest, connect: Connect) -> None:
    connect()
    job = guest.start(f"{FIO} --rw=randwrite --size=8m --rate_iops=800")
    for _ in range(2):
        guest.run(f"sleep 1; nvme reset {CONTROLLER}")
    report = guest.wait(job, "fio")
    assert json.loads(report[report.index("{") :])["jobs"][0]["error"] == 0


def test_a_lost_path_comes_back(guest: Guest, target: Service, connect: Connect) -> None:
    connect("--reconnect-delay=1", "--keep-alive-tmo=2")
    job = guest.start(f"{FIO} --rw=randwrite --size=8m --rate_iops=800")
    guest.run("sleep 1")
    target.uxk("fault", "add", EXPORT, "link", "down")
    guest.until("grep -q connecting /sys/class/nvme/nvme0/state", seconds=20)
    target.uxk("fault", "add", EXPORT, "link", "up")
    guest.until("grep -q live /sys/class/nvme/nvme0/state", seconds=60)
    report = guest.wait(job, "fio")
    assert json.loads(report[report.index("{") :])["jobs"][0]["error"] == 0


def test_nobody_notices_that_the_driver_dies(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    before = target.account(DRIVER)["restarts"]
    job = guest.start(f"{FIO} --rw=randwrite --size=8m --rate_iops=800")
    guest.run("sleep 1")
    target.uxk("fault", "add", DRIVER, "kind=crash")
    report = guest.wait(job, "fio")
    assert json.loads(report[report.index("{") :])["jobs"][0]["error"] == 0
    assert target.account(DRIVER)["restarts"] == before + 1
    assert "restarts in" in target.log()


# --- faults ---------------------------------------------------------------------------------------------------


def test_a_media_error_is_an_io_error(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    errors = len(nvme_json(guest, f"error-log {CONTROLLER}")["errors"])
    with fault(target, "media-error 4096-4103"):
        read = f"dd if={NODE} of=/dev/null bs=4k skip=512 count=1"
        assert "Input/output error" in guest.fails(read)
        assert "No data available" in guest.fails(f"{read} iflag=direct")  # what BLK_STS_MEDIUM is as an errno
        guest.run(f"dd if={NODE} of=/dev/null bs=4k skip=513 count=1 iflag=direct")
    guest.run(f"dd if={NODE} of=/dev/null bs=4k skip=512 count=1 iflag=direct")
    assert "critical medium error" in guest.dmesg() and "sector 4096" in guest.dmesg()
    log = nvme_json(guest, f"error-log {CONTROLLER}")["errors"]
    assert errors and log[0]["lba"] == 4096 and log[0]["status_field"] & 0x7FF == 0x281


def test_a_vendor_command_adds_a_fault(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    rule = "opcode=read lba=8192 action=status status=media-error dnr=1"
    guest.run(f"printf '%-512s' '{rule}' >/tmp/rule")
    guest.run(f"nvme admin-passthru {CONTROLLER} --opcode=0xc1 --cdw10=128 --data-len=512 -w --input-file=/tmp/rule")
    guest.fails(f"dd if={NODE} of=/dev/null bs=4k skip=1024 count=1 iflag=direct")
    listed = guest.run(f"nvme admin-passthru {CONTROLLER} --opcode=0xc2 --cdw10=1024 --data-len=4096 -r -b")
    assert "lba=8192" in listed
    guest.run(f"nvme admin-passthru {CONTROLLER} --opcode=0xc0")
    guest.run(f"dd if={NODE} of=/dev/null bs=4k skip=1024 count=1 iflag=direct")


def test_a_loss_of_power_takes_what_was_not_flushed(guest: Guest, connect: Connect) -> None:
    connect()
    assert guest.run("cat /sys/block/nvme0n1/queue/write_cache").strip() == "write back"
    read = f"dd if={NODE} bs=4k count=16 iflag=direct 2>/dev/null | sha256sum"
    write = f"dd if=/tmp/new of={NODE} bs=4k count=16 oflag=direct"
    guest.run(f"dd if=/dev/urandom of={NODE} bs=4k count=16 oflag=direct conv=fsync")
    guest.run("dd if=/dev/urandom of=/tmp/new bs=4k count=16")
    old, new = guest.run(read), guest.run("sha256sum </tmp/new")
    guest.run(write)
    assert guest.run(read) == new
    guest.run(f"nvme admin-passthru {CONTROLLER} --opcode=0xc4")
    assert guest.run(read) == old
    guest.run(f"{write} conv=fsync")
    guest.run(f"nvme admin-passthru {CONTROLLER} --opcode=0xc4")
    assert guest.run(read) == new


def test_a_journal_survives_losses_of_power(guest: Guest, target: Service, connect: Connect) -> None:
    connect()
    guest.run(f"mkfs.ext4 -q {NODE} && mount -t ext4 -o commit=1 {NODE} /mnt")
    guest.run("dd if=/dev/urandom of=/mnt/kept bs=64k count=16 conv=fsync")
    kept = guest.run("sha256sum </mnt/kept")
    writer = guest.start("for i in $(seq 400); do cp /bin/nvme /mnt/$((i % 20)) || exit 0; done")
    guest.run("sleep 2")
    target.uxk("fault", "add", EXPORT, "link", "down")
    guest.run("nvme disconnect-all; umount -l /mnt", ok=None)
    guest.wait(writer, "cp", ok=None)
    target.write(f"/sys/module/{DRIVER}/attributes/power_loss", "1")
    target.uxk("fault", "add", EXPORT, "link", "up")
    connect()
    guest.run(f"mount -t ext4 {NODE} /mnt && sha256sum </mnt/kept")
    assert guest.run("sha256sum </mnt/kept") == kept
    guest.run(f"umount /mnt && e2fsck -fn {NODE}")
