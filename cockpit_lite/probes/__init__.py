"""Probes: how a step is observed, by hooks that exist only while it runs."""
