"""How well faults are found: `python -m benchmarks.detection`."""
