"""Comparison of runs: their readings on shared gauges, the settings that differ, findings that came or went, what each cost.

    from cockpit_lite.compare import compare_runs

    comparison = compare_runs(["runs/before", "runs/after"])
    comparison.print()
    comparison.save("comparison.html")

It reads run logs only, so runs of another day, of another machine, unfinished and crashed ones can be compared.
"""

from cockpit_lite.compare.model import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
