"""Which of the stored plans the pipe's replicas run now, whether or not it serves the spec as it stands. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from languagepipes_api.names import LABEL_PLAN

from languagepipes_operator.observe.ownership import end_models, is_ready, label
from languagepipes_operator.observe.snapshot import Children
from languagepipes_operator.observe.stored_plans import StoredPlan


def running_plan(children: Children, plans: Sequence[StoredPlan]) -> StoredPlan | None:
    """Of the plans that members have Deployments of, that of the most Ready End Models; of equals the last.

    plans: the oldest first. None where no member of any of them exists.
    """
    deployed = {label(item, LABEL_PLAN) for item in children.deployments.values()}
    ready = Counter(label(pod, LABEL_PLAN) for pod in end_models(children) if is_ready(pod))
    found = [(ready[each.plan.hash], place) for place, each in enumerate(plans) if each.plan.hash in deployed]
    return plans[max(found)[1]] if found else None
