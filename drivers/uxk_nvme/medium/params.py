"""Parameters of the medium; the driver's own extend them."""

from __future__ import annotations

from typing import Annotated, Literal

import uxk

SECOND_NS = 1_000_000_000


class MediumParams(uxk.Params):
    """What the device is made of.  Zero in a geometry field means: as the preset, or the size, has it."""

    size: Annotated[
        int, uxk.param(ge=1 << 20, le=1 << 50, unit="bytes", help="capacity; a raw file brings its own")
    ] = 64 << 20
    lba_bytes: Annotated[Literal[512, 4096], uxk.param(help="bytes of a logical block")] = 512
    backing: Annotated[str, uxk.param(help="where the bytes are: ram, sparse:PATH or file:PATH", max_length=4096)] = (
        "ram"
    )
    integrity: Annotated[bool, uxk.param(help="a checksum per logical block finds silent corruption")] = False
    medium: Annotated[
        Literal["none", "simple", "ftl"],
        uxk.param(help="latency model: none, a formula, or flash with a translation layer"),
    ] = "none"
    write_cache: Annotated[
        int, uxk.param(ge=0, le=1 << 40, unit="bytes", help="volatile write cache, lost with power; 0: none")
    ] = 0
    tear_ppm: Annotated[
        int, uxk.param(ge=0, le=1_000_000, help="of the cached logical blocks, so many survive a loss of power")
    ] = 0

    # --- medium=simple ---
    # Class of a client TLC drive: reads of 80 us, writes that end in a protected buffer after 20 us (data sheets).
    read_ns: Annotated[int, uxk.param(ge=0, le=10**10, unit="ns", help="simple: latency of a read")] = 80_000
    write_ns: Annotated[int, uxk.param(ge=0, le=10**10, unit="ns", help="simple: latency of a write")] = 20_000
    flush_ns: Annotated[int, uxk.param(ge=0, le=10**10, unit="ns", help="simple: latency of a flush")] = 500_000
    trim_ns: Annotated[
        int, uxk.param(ge=0, le=10**10, unit="ns", help="simple: latency of deallocate and write zeroes")
    ] = 20_000
    lanes: Annotated[int, uxk.param(ge=1, le=4096, help="simple: commands at work at a time")] = 64
    bandwidth: Annotated[
        int, uxk.param(ge=0, le=1 << 40, unit="bytes", help="simple: bytes per second of all together; 0: no bound")
    ] = 3_500_000_000
    read_percentiles: Annotated[
        str, uxk.param(max_length=512, help="simple: instead of read_ns, '50:70us 99:200us 99.9:2ms'")
    ] = ""
    write_percentiles: Annotated[str, uxk.param(max_length=512, help="simple: instead of write_ns, likewise")] = ""

    # --- medium=ftl: geometry ---
    cell: Annotated[
        str, uxk.param(help="ftl: preset of flash and geometry: tlc-2tb-scaled, tlc, qlc, mlc, slc, femu, mqsim, ...")
    ] = "tlc-2tb-scaled"
    channels: Annotated[int, uxk.param(ge=0, le=64, help="ftl: channels; 0: the preset's")] = 0
    dies_per_channel: Annotated[int, uxk.param(ge=0, le=64, help="ftl: dies of a channel; 0: the preset's")] = 0
    planes: Annotated[int, uxk.param(ge=0, le=8, help="ftl: planes of a die; 0: the preset's")] = 0
    pages_per_block: Annotated[
        int, uxk.param(ge=0, le=4096, help="ftl: pages of a block; 0: so that there are about 128 lines")
    ] = 0
    map_bytes: Annotated[
        Literal[4096, 8192, 16384, 32768, 65536],
        uxk.param(help="ftl: bytes that one entry of the map stands for; smaller writes read first"),
    ] = 4096
    over_provisioning_ppm: Annotated[
        int, uxk.param(ge=20_000, le=4_000_000, help="ftl: flash beyond the capacity, open and reserved lines aside")
    ] = 70_000
    spare_ppm: Annotated[int, uxk.param(ge=0, le=500_000, help="ftl: spare blocks of a die that replace bad ones")] = (
        20_000
    )

    # --- medium=ftl: times; 0 means the cell's ---
    page_read_ns: Annotated[int, uxk.param(ge=0, le=10**9, unit="ns", help="ftl: tR of every page; 0: cell")] = 0
    page_program_ns: Annotated[int, uxk.param(ge=0, le=10**9, unit="ns", help="ftl: tPROG; 0: cell")] = 0
    block_erase_ns: Annotated[int, uxk.param(ge=0, le=10**10, unit="ns", help="ftl: tBERS; 0: cell")] = 0
    interface: Annotated[
        int, uxk.param(ge=0, le=1 << 40, unit="bytes", help="ftl: bytes per second of a channel; 0: cell")
    ] = 0
    controller_ns: Annotated[
        int, uxk.param(ge=0, le=10**7, unit="ns", help="ftl: firmware time of a command, in parallel")
    ] = 5_000
    read_suspend: Annotated[bool, uxk.param(help="ftl: reads suspend programs and erases of their die")] = False

    # --- medium=ftl: collection and wear ---
    gc_victim: Annotated[str, uxk.param(help="ftl: greedy, cost-benefit, fifo, wear-aware, d-choices or random")] = (
        "greedy"
    )
    gc_background_lines: Annotated[
        int, uxk.param(ge=0, le=65_536, help="ftl: collect in idle time below so many free lines; 0: a sixteenth")
    ] = 0
    gc_foreground_lines: Annotated[
        int, uxk.param(ge=0, le=65_536, help="ftl: collect along with writes below so many free lines; 0: 4")
    ] = 0
    wear_gap_cycles: Annotated[
        int, uxk.param(ge=0, le=100_000, help="ftl: cold data move when erase counts differ by more; 0: never")
    ] = 100
    precondition: Annotated[
        Literal["none", "sequential", "random"], uxk.param(help="ftl: how full the flash is at the start")
    ] = "none"
    initial_cycles: Annotated[int, uxk.param(ge=0, le=1_000_000, help="ftl: erase count at the start")] = 0
    endurance_cycles: Annotated[int, uxk.param(ge=0, le=10**6, help="ftl: rated cycles; 0: cell")] = 0

    # --- medium=ftl: errors ---
    errors: Annotated[bool, uxk.param(help="ftl: raw bit errors, read retries, bad blocks")] = True
    error_scale_ppm: Annotated[int, uxk.param(ge=0, le=10**12, help="ftl: raw bit errors times this / 10^6")] = (
        1_000_000
    )
    age_scale: Annotated[
        int, uxk.param(ge=0, le=10**9, help="ftl: retention time runs so many times as fast as the clock")
    ] = 1
    ecc_ppt: Annotated[
        int, uxk.param(ge=1, le=10**12, help="ftl: bit errors in 10^12 that the code corrects at once")
    ] = 4_000_000_000
    read_retries: Annotated[int, uxk.param(ge=0, le=64, help="ftl: read retries before a page is given up")] = 8
    refresh: Annotated[bool, uxk.param(help="ftl: blocks with many errors are written anew")] = True
    slow_die: Annotated[int, uxk.param(ge=-1, le=4095, help="ftl: die that is slow; -1: none")] = -1
    slow_channel: Annotated[int, uxk.param(ge=-1, le=63, help="ftl: channel that is slow; -1: none")] = -1
    slow_ppm: Annotated[int, uxk.param(ge=1_000_000, le=1_000_000_000, help="ftl: its times times this / 10^6")] = (
        10_000_000
    )

    # --- medium=ftl: heat ---
    ambient_k: Annotated[int, uxk.param(ge=200, le=400, help="ftl: temperature around, in kelvin")] = 298
    heat_k_per_w_ppm: Annotated[
        int, uxk.param(ge=0, le=100_000_000, help="ftl: kelvin above ambient for each watt, times 10^6")
    ] = 8_000_000
    heat_ns: Annotated[
        int, uxk.param(ge=1_000_000, le=3600 * SECOND_NS, unit="ns", help="ftl: time constant of warming up")
    ] = 60 * SECOND_NS
    warning_k: Annotated[int, uxk.param(ge=200, le=1000, help="ftl: light throttling from here on")] = 343
    critical_k: Annotated[int, uxk.param(ge=200, le=1000, help="ftl: heavy throttling from here on")] = 353
