"""Peers on the same data, on the same machine, in the same run: `python -m benchmarks.peers`."""
