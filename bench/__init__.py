"""Measurements: uxk's queue pairs, event heap and instances beside what else one would use (`make bench`)."""
