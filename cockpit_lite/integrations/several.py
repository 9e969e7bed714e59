"""Several: the processes that a framework has started, as a setting of the cockpit."""

from __future__ import annotations

from typing import Any

import torch.distributed as distributed


def processes(together: bool) -> dict[str, Any]:
    """Return the setting with which all processes measure together; nothing where there is one, or they need not."""
    several = together and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return {"process_group": distributed.group.WORLD} if several else {}
