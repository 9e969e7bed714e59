"""The loss by sample, and as a function of the prediction: read off the user's graph, without touching anything."""

from cockpit_lite.probes.loss_head.graph import add_up, find_loss_head, find_loss_heads, without_autocast
from cockpit_lite.probes.loss_head.heads import Contributions, LossHead

__all__ = ["Contributions", "LossHead", "add_up", "find_loss_head", "find_loss_heads", "without_autocast"]
