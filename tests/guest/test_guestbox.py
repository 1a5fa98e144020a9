"""The harness itself: commands and their exit codes, deadlines, and the kernel's own NVMe/TCP target as a yardstick."""

from __future__ import annotations

import json

import pytest
from guestbox.machine import Guest, GuestError

pytestmark = pytest.mark.xdist_group("guest")

KERNEL_TARGET = """
modprobe nvmet_tcp
mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/nvmet
truncate -s 64M /tmp/disk
mkdir -p subsystems/nqn.kernel/namespaces/1 ports/1
echo 1 >subsystems/nqn.kernel/attr_allow_any_host
cd subsystems/nqn.kernel/namespaces/1
echo 1 >buffered_io
echo /tmp/disk >device_path
echo 1 >enable
cd /sys/kernel/config/nvmet/ports/1
echo ipv4 >addr_adrfam; echo tcp >addr_trtype; echo 127.0.0.1 >addr_traddr; echo 4420 >addr_trsvcid
ln -s /sys/kernel/config/nvmet/subsystems/nqn.kernel subsystems/nqn.kernel
"""


def test_a_command_gives_its_output_and_its_exit_code(guest: Guest) -> None:
    assert guest.run("echo here; uname -s") == "here\nLinux\n"
    assert guest.run("false", ok=(1,)) == ""
    assert len(guest.run("seq 20000")) == 108894
    with pytest.raises(GuestError, match="exit code 3"):
        guest.run("exit 3")
    with pytest.raises(GuestError, match="expected a failure"):
        guest.fails("true")


def test_a_deadline_ends_a_command_and_leaves_the_next_one_alone(guest: Guest) -> None:
    assert guest.run("sleep 100", seconds=1, ok=(137,)) == "Killed\n"
    slow = guest.start("sleep 2; echo slow")
    assert guest.run("echo quick") == "quick\n"
    assert guest.wait(slow) == "slow\n"


def test_kernel_messages_stay_out_of_answers(guest: Guest) -> None:
    assert guest.run("for i in 1 2 3; do echo noise-$i >/dev/kmsg; echo $i; done") == "1\n2\n3\n"
    guest.run("sleep 0.1")
    assert "noise-3" in guest.dmesg()


def test_the_programs_agree_with_the_kernels_own_target(guest: Guest) -> None:
    guest.run(KERNEL_TARGET)
    guest.run("nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.kernel")
    guest.until("test -b /dev/nvme0n1")
    assert json.loads(guest.run("nvme id-ns /dev/nvme0n1 -o json"))["nsze"] == (64 << 20) // 4096
    guest.run("mkfs.ext4 -q /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt && cp /bin/nvme /mnt && umount /mnt")
    guest.run("e2fsck -fn /dev/nvme0n1")
    guest.run("nvme disconnect-all")
