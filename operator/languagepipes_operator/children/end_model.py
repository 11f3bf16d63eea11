"""The Deployment of a replica's End Model: the one pod that handles text."""

from __future__ import annotations

from pathlib import Path

from languagepipes_api.end_model_settings import end_model_settings
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import API_PORT, RING_PORT, TELEMETRY_PORT
from languagepipes_api.spec import StoredResponsesSpec

from languagepipes_operator import names
from languagepipes_operator.children import members, pods, resources
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.inputs import member_template
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.settings import OperatorSettings

# Until its address has left the Service everywhere, it goes on accepting. Then comes SIGTERM: answers that were begun
# have `spec.rollout.drainSeconds`, and connections and the ring are closed in at most 4 s more.
_LEAVE_SERVICE_SECONDS = 5
_CLOSE_SECONDS = 5


def end_model_deployment(
    snapshot: Snapshot, stored: StoredPlan, decided: DeploymentDecision, settings: OperatorSettings
) -> Manifest:
    pipe, identity, end_model = snapshot.pipe, decided.identity, stored.plan.end_model
    server, drain_seconds = pipe.spec.server, pipe.spec.rollout.drain_seconds
    template = member_template(pipe.spec, stored.plan, identity)
    keys = server.api_keys_secret_ref
    # A plan's overhead has room for what is stored by default.
    stored_bytes = max(0, server.stored_responses.memory_bytes - StoredResponsesSpec().memory_bytes)
    files = members.member_files(pipe, stored, identity)
    if keys is not None:
        files.append(pods.secret_files("keys", keys.name, str(names.KEYS_DIR)))
    container = pods.Container(
        image=decided.image,
        pull_policy=settings.image_pull_policy,
        settings=MemberSettings(
            role="end-model",
            successor=members.successor(pipe, stored.plan, identity),
            device=end_model.device,
            threads=resources.threads(template.get("resources", {})),
            api_listen=f"{settings.every_address}:{API_PORT}",
            api_keys_dir=None if keys is None else Path(names.KEYS_DIR),
            drain_seconds=drain_seconds,
            **end_model_settings(pipe),
            **members.common_settings(pipe, identity.replica, settings, store_key=decided.store_key),
        ),
        resources=resources.member_resources(
            device=end_model.device,
            need_bytes=end_model.weight_bytes + end_model.kv_bytes + end_model.overhead_bytes,
            stored_bytes=stored_bytes if server.stored_responses.count else 0,
            budget_bytes=None,
            request_bytes=end_model.memory_request_bytes,
            template=template.get("resources", {}),
        ),
        ports={"api": API_PORT, "ring": RING_PORT, "telemetry": TELEMETRY_PORT},
        files=files,
        lifecycle={"preStop": {"sleep": {"seconds": _LEAVE_SERVICE_SECONDS}}},
    )
    return members.member_deployment(
        snapshot,
        stored.plan,
        decided,
        container,
        settings,
        template=template,
        grace_seconds=_LEAVE_SERVICE_SECONDS + drain_seconds + _CLOSE_SECONDS,
        stage_name=None,
    )
