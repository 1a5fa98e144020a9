"""The batch kernel of the counting engine: integer arrays, compiled by numba where it is installed."""
