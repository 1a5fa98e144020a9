"""A RocksDB store (package ``rocksdict``) whose keys are overwritten, Zipf-distributed, and sometimes deleted.

Small memtables and levels make compactions frequent: most of what the volume gets to see comes from them.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import random
from typing import Any


def options(rocksdict: Any) -> Any:
    """Levelled compaction with 2 MiB memtables and files, uncompressed, small caches."""
    chosen = rocksdict.Options(raw_mode=True)
    chosen.create_if_missing(True)
    chosen.set_write_buffer_size(2 << 20)
    chosen.set_target_file_size_base(2 << 20)
    chosen.set_max_bytes_for_level_base(8 << 20)
    chosen.set_max_bytes_for_level_multiplier(8)
    chosen.set_level_zero_file_num_compaction_trigger(4)
    chosen.set_compression_type(rocksdict.DBCompressionType.none())
    chosen.set_max_total_wal_size(8 << 20)
    chosen.set_max_background_jobs(2)
    return chosen


def main() -> None:
    """Loads all keys in random order, then overwrites."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keys", type=int, default=250_000)
    parser.add_argument("--writes", type=int, default=1_500_000)
    parser.add_argument("--value-bytes", type=int, default=400)
    parser.add_argument("--skew", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=100, help="writes in one synchronous batch")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rocksdict = importlib.import_module("rocksdict")
    draw = random.Random(args.seed)
    db = rocksdict.Rdict("store", options(rocksdict))
    durable = rocksdict.WriteOptions()
    durable.sync = True
    noise = draw.randbytes(1 << 16)

    def value() -> bytes:
        start = draw.randrange(len(noise) - args.value_bytes)
        return noise[start : start + args.value_bytes]

    keys = [b"user%012d" % number for number in range(args.keys)]
    draw.shuffle(keys)
    weights = list(itertools.accumulate((rank + 1) ** -args.skew for rank in range(args.keys)))
    for start in range(0, args.keys + args.writes, args.batch):
        batch = rocksdict.WriteBatch(raw_mode=True)
        loading = keys[start : start + args.batch] if start < args.keys else []
        for key in loading or draw.choices(keys, cum_weights=weights, k=args.batch):
            if not loading and draw.random() < 0.02:
                batch.delete(key)
            else:
                batch.put(key, value())
        db.write(batch, durable)
    db.close()


if __name__ == "__main__":
    main()
