"""The Deployment of one stage."""

from __future__ import annotations

from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import RING_PORT, TELEMETRY_PORT, Identity

from languagepipes_operator.children import members, pods, resources
from languagepipes_operator.children.settings import ManifestSettings
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan

# A stage keeps nothing that a signal must save: it ends with the frame in hand.
_GRACE_SECONDS = 20


def stage_deployment(
    snapshot: Snapshot,
    kept: StoredPlan,
    settings: ManifestSettings,
    identity: Identity,
    assignments: members.Assignments,
) -> Manifest:
    pipe = snapshot.pipe
    stage = kept.plan.stages[identity.index - 1]
    stages = pipe.spec.stages
    # The plan may be older than the spec: a stage that the list no longer has keeps no template.
    asked = stages if stages.items is None else next((item for item in stages.items if item.name == stage.name), None)
    template = pods.template_fields(None if asked is None else asked.template)
    container = pods.Container(
        image=kept.node_image,
        pull_policy=settings.image_pull_policy,
        settings=MemberSettings(
            role="stage",
            stage=identity.index,
            successor=members.successor(pipe, kept.plan, identity),
            device=stage.device,
            threads=resources.threads(template.get("resources", {})),
            **members.common_settings(pipe, identity.replica, settings),
        ),
        resources=resources.member_resources(
            device=stage.device,
            need_bytes=stage.weight_bytes + stage.kv_bytes + stage.overhead_bytes,
            budget_bytes=stage.memory_budget_bytes,
            request_bytes=stage.memory_request_bytes,
            template=template.get("resources", {}),
        ),
        ports={"ring": RING_PORT, "telemetry": TELEMETRY_PORT},
        files=members.member_files(pipe, kept, identity),
    )
    return members.member_deployment(
        snapshot,
        kept,
        identity,
        container,
        settings,
        template=template,
        grace_seconds=_GRACE_SECONDS,
        node=lambda: assignments(identity.replica).get(stage.name),
        stage_name=stage.name,
        inputs={},
    )
