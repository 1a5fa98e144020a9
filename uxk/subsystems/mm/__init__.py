"""Memory of the emulated kernel: page cache, dirty limits, writeback, reclaim, memory pools."""
