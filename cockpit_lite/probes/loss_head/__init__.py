"""The loss by sample, and as a function of the prediction: read off the user's graph, without touching anything."""

from cockpit_lite.probes.loss_head.graph import check_heads, find_loss_head, find_loss_heads
from cockpit_lite.probes.loss_head.heads import LossHead

__all__ = ["LossHead", "check_heads", "find_loss_head", "find_loss_heads"]
