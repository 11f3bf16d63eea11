"""The Deployment of one stage."""

from __future__ import annotations

from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import RING_PORT, TELEMETRY_PORT

from languagepipes_operator.children import members, pods, resources
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.inputs import member_template
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings

# A stage keeps nothing that a signal must save, but an open ring needs it: it serves that for nearly as long as this
# (languagepipes_node.stage.main).
_GRACE_SECONDS = 20


def stage_deployment(
    snapshot: Snapshot, stored: StoredPlan, decided: DeploymentDecision, settings: OperatorSettings
) -> Manifest:
    pipe, identity = snapshot.pipe, decided.identity
    stage = stored.plan.stages[identity.index - 1]
    template = member_template(pipe.spec, stored.plan, identity)
    container = pods.Container(
        image=decided.image,
        pull_policy=settings.image_pull_policy,
        settings=MemberSettings(
            role="stage",
            stage=identity.index,
            successor=members.successor(pipe, stored.plan, identity),
            device=stage.device,
            threads=resources.threads(template.get("resources", {})),
            **members.common_settings(pipe, identity.replica, settings, store_key=decided.store_key),
        ),
        resources=resources.member_resources(
            device=stage.device,
            need_bytes=stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes,
            budget_bytes=stage.memory_budget_bytes,
            request_bytes=stage.memory_request_bytes,
            template=template.get("resources", {}),
        ),
        ports={"ring": RING_PORT, "telemetry": TELEMETRY_PORT},
        files=members.member_files(pipe, stored, identity),
    )
    return members.member_deployment(
        snapshot,
        stored.plan,
        decided,
        container,
        settings,
        template=template,
        grace_seconds=_GRACE_SECONDS,
        stage_name=stage.name,
    )
