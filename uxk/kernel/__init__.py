"""The Trio side: boots, loads, dispatches, supervises."""
