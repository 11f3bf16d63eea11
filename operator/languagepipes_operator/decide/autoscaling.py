"""How many replicas `spec.autoscaling` asks for, from the requests that End Models reported. Pure.

Up at once; down only to what was needed at some time in the last scaleDownDelaySeconds, as a HorizontalPodAutoscaler's
stabilisation window has it. What was needed before this process began to watch is not known: until it has watched for
so long, the number does not fall.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from languagepipes_api.spec import AutoscalingSpec

from languagepipes_operator.observe.load import Load


def desired_replicas(
    limits: AutoscalingSpec, *, current: int | None, existing: int, load: Load | None, now: datetime
) -> int:
    """0: one replica, without stages.

    current: as it was decided last, None before the first time: then it begins with the replicas that exist. load: None
    while nothing was asked.
    """
    current = max(1, existing) if current is None else current
    needed = current
    if load is not None:
        needed = math.ceil(load.highest_requests / limits.target_requests_per_replica)
        watched = load.since + timedelta(seconds=limits.scale_down_delay_seconds) <= now
        if not (watched and load.complete):
            needed = max(needed, current)
    return min(max(needed, limits.min_replicas), limits.max_replicas)
