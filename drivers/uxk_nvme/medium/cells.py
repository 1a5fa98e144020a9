"""What flash of each kind takes its time for, bears and breaks at; every number with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

US: Final = 1_000
MS: Final = 1_000_000


class Cell(NamedTuple):
    """One kind of flash."""

    read_ns: tuple[int, ...]
    """tR of the page types of a wordline: lower, (center,) upper."""
    program_ns: tuple[int, ...]
    """tPROG, likewise."""
    erase_ns: int
    page_bytes: int
    interface_bytes_s: int
    """Of one channel."""
    endurance_cycles: int
    """Program/erase cycles that the part is rated for; `percentage used` counts against it."""
    rber_fresh_ppt: int
    """Raw bit errors in 10^12 bits, just programmed, fresh block."""
    rber_cycle_ppt: int
    """More for each program/erase cycle."""
    rber_cycle_day_ppt: int
    """More for each cycle and day of retention, in 1/1,000."""
    rber_read_ppt: int
    """More for each 1,000 reads of the block, in a fresh block; doubles at every half of the endurance."""


SLC: Final = Cell(
    # FEMU hw/femu/nand/nand.h: SLC_PAGE_READ/WRITE_LATENCY_NS, SLC_BLOCK_ERASE_LATENCY_NS.
    read_ns=(40 * US,),
    program_ns=(800 * US,),
    erase_ns=2 * MS,
    page_bytes=4096,  # FEMU's black-box default: secs_per_pg 8 of 512 bytes
    interface_bytes_s=333_000_000,  # MQSim ssdconfig.xml: Channel_Transfer_Rate 333, 8 bits wide
    endurance_cycles=100_000,  # FEMU nand.h: SLC_RATED_PE_CYCLES
    # Ours: a hundredth of TLC's, as a cell with one threshold has that much more margin.
    rber_fresh_ppt=1_000,
    rber_cycle_ppt=1,
    rber_cycle_day_ppt=1,
    rber_read_ppt=1_000,
)
MLC: Final = Cell(
    # FEMU nand.h, measured on Micron L95B parts.
    read_ns=(48 * US, 64 * US),
    program_ns=(850 * US, 2_300 * US),
    erase_ns=3 * MS,
    page_bytes=8192,  # MQSim ssdconfig.xml: Page_Capacity
    interface_bytes_s=333_000_000,  # MQSim, as above
    endurance_cycles=3_000,  # FEMU nand.h: MLC_RATED_PE_CYCLES
    # Cai et al., DSN 2015 (Read Disturb Errors in MLC NAND), 2Y-nm parts: about 1e-9 for each read at 2,000 cycles,
    # rising with wear.  Fresh, cycle and retention terms: ours, so that 1e-3 comes near at the end of the rated life.
    rber_fresh_ppt=20_000_000,
    rber_cycle_ppt=100_000,
    rber_cycle_day_ppt=500_000,
    rber_read_ppt=400_000,
)
TLC: Final = Cell(
    # SimpleSSD's TLC numbers (Jung et al., IEEE CAL 2018), as in FEMU nand.h: tR of lower, center, upper page.
    read_ns=(56_500, 77_500, 106_000),
    # Ours: 3D TLC programs a wordline at once; 2.1 ms for three pages is the class of 64-layer data sheets.  The
    # incremental programming of SimpleSSD's planar part (0.82, 2.2, 5.7 ms) is preset `tlc-planar`.
    program_ns=(700 * US, 700 * US, 700 * US),
    erase_ns=3 * MS,  # FEMU nand.h: TLC_BLOCK_ERASE_LATENCY_NS
    page_bytes=16_384,  # usual for 3D TLC; FEMU's QLC transfer time is for 16 KiB, too
    interface_bytes_s=800_000_000,  # ONFI 4.0, NV-DDR3 at 800 MT/s; FEMU nand.h takes that rate for QLC
    endurance_cycles=1_000,  # FEMU nand.h: TLC_RATED_PE_CYCLES
    # Ours, linear: shape after Cai et al., Proc. IEEE 105(9), 2017 (errors grow with cycles, with retention in worn
    # blocks, and with reads).  Scaled so that fresh blocks never retry, blocks at their rated end do after some
    # months, and a year after it all is still readable, which JESD218 asks of client drives.
    rber_fresh_ppt=100_000_000,
    rber_cycle_ppt=1_000_000,
    rber_cycle_day_ppt=12_000_000,
    rber_read_ppt=1_000_000,
)
QLC: Final = Cell(
    # Intel 96-layer 3D QLC, PACA (Q. Chen et al., ICCD 2022), as in FEMU nand.h.
    read_ns=(47_900, 76_200, 134_600, 228_100),
    program_ns=(1_860 * US,) * 4,
    erase_ns=6_340 * US,
    page_bytes=16_384,
    interface_bytes_s=800_000_000,
    endurance_cycles=300,  # FEMU nand.h: QLC_RATED_PE_CYCLES
    # Ours: TLC's end-of-life errors at QLC's shorter life, three times as much when fresh.
    rber_fresh_ppt=300_000_000,
    rber_cycle_ppt=5_000_000,
    rber_cycle_day_ppt=40_000_000,
    rber_read_ppt=3_000_000,
)

CELLS: Final[Mapping[str, Cell]] = MappingProxyType(
    {
        "slc": SLC,
        "mlc": MLC,
        "tlc": TLC,
        # SimpleSSD (IEEE CAL 2018) and FEMU nand.h: TLC_*_PAGE_WRITE_LATENCY_NS.
        "tlc-planar": TLC._replace(program_ns=(820_500, 2_225_000, 5_734_000)),
        "qlc": QLC,
        # FEMU's black-box defaults (femu.c: pg_rd_lat, pg_wr_lat, blk_er_lat; ch_xfer_lat 0: no channel model, which
        # 64 GB/s comes close to); pages of 4 KiB.
        "femu": SLC._replace(read_ns=(40 * US,), program_ns=(200 * US,), erase_ns=2 * MS, interface_bytes_s=64 * 10**9),
        # MQSim's ssdconfig.xml as shipped: 75 us for every page operation, 3.8 ms erase, 8 KiB pages, 10,000 cycles.
        "mqsim": MLC._replace(
            read_ns=(75 * US,) * 2, program_ns=(75 * US,) * 2, erase_ns=3_800 * US, endurance_cycles=10_000
        ),
    }
)


class Preset(NamedTuple):
    """What a name of the parameter ``cell`` stands for; the geometry shrinks where the device is too small for it."""

    cell: str
    channels: int
    dies_per_channel: int
    planes: int
    block_pages: int
    """Of a full-size part.  Where blocks are made smaller so that a small device has lines enough, erasing takes
    proportionally less: its share of a die's time stays what it is."""


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        # Ours: a quarter of the dies of a 2 TB client drive, so that some hundred MiB still have many blocks.
        "tlc-2tb-scaled": Preset("tlc", 4, 2, 2, 1152),
        # Ours: eight channels of four dies with four planes, the class of 2 TB client drives.
        "tlc": Preset("tlc", 8, 4, 4, 1152),
        "tlc-planar": Preset("tlc-planar", 4, 2, 2, 384),
        "qlc": Preset("qlc", 4, 2, 4, 1536),
        "mlc": Preset("mlc", 8, 2, 2, 256),
        "slc": Preset("slc", 4, 4, 1, 64),
        # FEMU femu.c: nchs 8, luns_per_ch 8, pls_per_lun 1.
        "femu": Preset("femu", 8, 8, 1, 256),
        # MQSim ssdconfig.xml: 8 channels, 4 chips of 2 dies, 2 planes.
        "mqsim": Preset("mqsim", 8, 8, 2, 256),
    }
)
