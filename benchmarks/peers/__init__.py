"""Every solver library side by side on the same problems: `python -m benchmarks.peers`."""
