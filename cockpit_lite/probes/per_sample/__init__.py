"""Per-sample gradient statistics of a training step, exact or named as not covered."""

from __future__ import annotations

from cockpit_lite.probes.per_sample.layers import LayerGradients, PerSampleGradients
from cockpit_lite.probes.per_sample.probe import PerSampleProbe
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics

__all__ = ["LayerGradients", "PerSampleGradients", "PerSampleProbe", "PerSampleStatistics"]
