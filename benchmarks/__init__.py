"""What cockpit-lite claims, measured: each module prints a table and writes it into its section of docs/benchmarks.md.

From the root of the repository::

    python -m benchmarks.untracked     # what a step costs on which nothing is measured
    python -m benchmarks.identity      # weights with and without the cockpit, bit by bit
    python -m benchmarks.demos         # do the broken demos name their fault, and does the healthy one stay silent
    python -m benchmarks.instruments   # what instruments cost on a measured step, each and all together
    python -m benchmarks.cockpit_peer  # values and cost beside Cockpit 1.0.2, which is an extra

``--print-only`` leaves the page as it is.
"""
