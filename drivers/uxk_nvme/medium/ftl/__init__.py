"""Flash behind a page-mapped translation layer: dies that are busy, lines that are collected, cells that wear."""
