"""The same kernel with the disk as virtio-blk: qemu's NBD client is uxk's client, the guest knows nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guestbox.machine import Guest
from guestbox.service import Service

pytestmark = pytest.mark.xdist_group("guest")

SIZE_BYTES = 64 << 20
NODE = "/dev/vda"


def test_a_file_system_lives_on_a_virtio_disk(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with Service(tmp_path, "nbd", "nvme", "-p", f"size={SIZE_BYTES}", "--unix", str(path)) as service:
        nbd = f"file.driver=nbd,file.server.type=unix,file.server.path={path}"
        assert "OK" in guest.monitor(f"drive_add 0 if=none,id=disk,format=raw,discard=unmap,{nbd}")
        assert guest.monitor("device_add virtio-blk-pci,drive=disk,id=vda") == ""
        guest.run("modprobe virtio_blk")
        guest.until(f"test -b {NODE}")
        assert guest.run("cat /sys/block/vda/size").strip() == str(SIZE_BYTES // 512)
        guest.run(
            f"mkfs.ext4 -q {NODE} && mount -t ext4 {NODE} /mnt && cp /bin/nvme /mnt && fstrim /mnt && umount /mnt"
        )
        guest.run(f"e2fsck -fn {NODE}")
        report = guest.run(
            f"fio --name=job --filename={NODE} --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=16 "
            "--size=4m --verify=crc32c --output-format=json"
        )
        assert json.loads(report[report.index("{") :])["jobs"][0]["error"] == 0
        guest.monitor("device_del vda")
        guest.until(f"! test -e {NODE}")
        driver, export = service.account("nvme"), service.account("nbd_server")
        assert driver["read_bytes"] == export["io_read_bytes"] > 4 << 20
        assert driver["written_bytes"] == export["io_written_bytes"] > 4 << 20
        assert export["submitted"] >= driver["requests"] == driver["completed"]  # neighbours may have been merged
        assert not driver["rejects"] and not export["rejects"]
