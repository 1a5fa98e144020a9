"""An order-entry database in SQLite: write-ahead log, one durable transaction after the other, skewed updates.

Each transaction books an order: it changes the stock of a few items (Zipf-distributed), a customer's balance and a
district's counter, inserts the order with its lines, and in every tenth case deletes the oldest orders.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sqlite3

SCHEMA = """
PRAGMA page_size = 4096;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -16000;
PRAGMA wal_autocheckpoint = 1000;
CREATE TABLE item (id INTEGER PRIMARY KEY, stock INTEGER, sold INTEGER, name TEXT);
CREATE TABLE customer (id INTEGER PRIMARY KEY, balance INTEGER, orders INTEGER, data TEXT);
CREATE TABLE district (id INTEGER PRIMARY KEY, next_order INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, district INTEGER, total INTEGER, note TEXT);
CREATE TABLE line (orders INTEGER, number INTEGER, item INTEGER, amount INTEGER, PRIMARY KEY (orders, number))
    WITHOUT ROWID;
CREATE INDEX orders_by_customer ON orders (customer, id);
"""


def fill(db: sqlite3.Connection, draw: random.Random, items: int, customers: int) -> None:
    """Loads the tables that do not grow."""
    text = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=4096))

    def words(length: int) -> str:
        start = draw.randrange(len(text) - length)
        return text[start : start + length]

    with db:
        db.executemany("INSERT INTO item VALUES (?, 100000, 0, ?)", ((i, words(180)) for i in range(items)))
        db.executemany("INSERT INTO customer VALUES (?, 0, 0, ?)", ((i, words(400)) for i in range(customers)))
        db.executemany("INSERT INTO district VALUES (?, 0)", ((i,) for i in range(10)))


def main() -> None:
    """Fills the database and runs the transactions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--transactions", type=int, default=36_000)
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--customers", type=int, default=60_000)
    parser.add_argument("--kept", type=int, default=10_000, help="orders that are kept")
    parser.add_argument("--skew", type=float, default=1.0, help="exponent of the Zipf distribution of items")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    db = sqlite3.connect("orders.db", isolation_level=None)
    db.executescript(SCHEMA)
    db.isolation_level = "IMMEDIATE"
    fill(db, draw, args.items, args.customers)

    names = list(range(args.items))
    draw.shuffle(names)  # popular items lie anywhere in the table
    weights = list(itertools.accumulate((rank + 1) ** -args.skew for rank in range(args.items)))
    for order in range(args.transactions):
        customer, district = int(args.customers * draw.random() ** 3), draw.randrange(10)
        chosen = sorted(set(draw.choices(names, cum_weights=weights, k=draw.randint(3, 9))))
        with db:
            db.executemany("UPDATE item SET stock = stock - 1, sold = sold + 1 WHERE id = ?", ((i,) for i in chosen))
            db.execute("UPDATE customer SET balance = balance + 7, orders = orders + 1 WHERE id = ?", (customer,))
            db.execute("UPDATE district SET next_order = ? WHERE id = ?", (order, district))
            db.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", (order, customer, district, 7, "n" * 60))
            db.executemany("INSERT INTO line VALUES (?, ?, ?, 1)", ((order, n, i) for n, i in enumerate(chosen)))
            if order % 10 == 0 and order >= args.kept:
                db.execute("DELETE FROM line WHERE orders < ?", (order - args.kept,))
                db.execute("DELETE FROM orders WHERE id < ?", (order - args.kept,))
    db.close()


if __name__ == "__main__":
    main()
