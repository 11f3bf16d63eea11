"""What shapes the pods of each Deployment, as values that are hashed: another hash replaces the pods. Pure.

Part of the contract between operator versions, since Deployments are stored with their hash. So the inputs never hold
the operator's version, nor anything that changes with it, and a field that is added may only count where it is not at
its default. The image is no input: a plan names it (`stored_plans.content_hash`), and a store's has rules of its own.
"""

from __future__ import annotations

from typing import Any

from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe, PipeSpec, RecoverySpec, RolloutSpec, StoredResponsesSpec
from languagepipes_api.template import StoreTemplate

from languagepipes_operator import names
from languagepipes_operator.digest import digest
from languagepipes_operator.observe.stored_plans import StoredPlan, content_hash
from languagepipes_operator.settings import OperatorSettings


def member_inputs(
    pipe: LanguagePipe, stored: StoredPlan, identity: Identity, settings: OperatorSettings, *, store_key: str
) -> str:
    """Of a stage or an End Model. store_key: which store it loads from (`decide.stores`); the first one is no input."""
    inputs: dict[str, Any] = {
        "identity": identity.uri,
        "plan": stored.plan.hash,
        "content": content_hash(stored),
        "template": member_template(pipe.spec, stored.plan, identity),
        **_of_every_pod(settings),
    }
    if store_key:
        inputs["store"] = store_key
    if identity.role == "end-model":
        server = pipe.spec.server
        inputs |= {
            "served_name": pipe.served_name,
            "keys": None if server.api_keys_secret_ref is None else server.api_keys_secret_ref.name,
            "max_concurrent_requests": server.max_concurrent_requests,
            "max_queued_requests": server.max_queued_requests,
        }
        if pipe.spec.model.tool_parser != "auto":
            inputs["tool_parser"] = pipe.spec.model.tool_parser
        if server.generation_config != "auto":
            inputs["generation_config"] = server.generation_config
        if server.scheduling_policy != "fair":
            inputs["scheduling_policy"] = server.scheduling_policy
        if server.cors is not None:
            inputs["cors"] = list(server.cors.allowed_origins)
        kept, default = server.stored_responses, StoredResponsesSpec()
        if (kept.count, kept.memory_bytes) != (default.count, default.memory_bytes):
            inputs["stored_responses"] = [kept.count, kept.memory_bytes]
        if not server.prefix_cache:
            inputs["prefix_cache"] = False
        if server.speculative_decoding != "none":
            inputs["speculative_decoding"] = server.speculative_decoding
        if pipe.spec.recovery != RecoverySpec():
            inputs["recovery"] = [pipe.spec.recovery.max_wait_seconds, pipe.spec.recovery.max_replays]
        if pipe.spec.scales_to_zero:
            inputs["scales_to_zero"] = True
        # Pods from before the field have 35 s, until another revision replaces them.
        if pipe.spec.rollout.drain_seconds != RolloutSpec().drain_seconds:
            inputs["drain"] = pipe.spec.rollout.drain_seconds
    return digest(inputs)


def store_inputs(pipe: LanguagePipe, settings: OperatorSettings, *, pinned: str | None) -> str:
    """Of the weights store. pinned: the commit that it serves in place of the spec's revision."""
    model = pipe.spec.model
    token = model.token_secret_ref
    inputs: dict[str, Any] = {
        "source": model.source,
        "revision": model.resolved_from,
        "dtype": model.dtype,
        "token": None if token is None else [token.name, token.key],
        "cached": pipe.spec.cache is not None,
        "template": store_template(pipe.spec),
        **_of_every_pod(settings),
    }
    if model.quantization != "none":
        inputs["quantization"] = model.quantization
    if mirror := hub_mirror(pipe, settings):
        inputs["mirror"] = mirror
    if authorities := hub_authorities_name(pipe, settings):
        inputs["authorities"] = authorities
    if pipe.spec.store is not None and pipe.spec.store.ephemeral_storage_bytes is not None:
        inputs["ephemeral_storage"] = pipe.spec.store.ephemeral_storage_bytes
    if proxy := proxy_variables(pipe, settings):
        inputs["proxy"] = proxy
    if pinned is not None:
        inputs["pinned"] = pinned
    return digest(inputs)


def member_template(spec: PipeSpec, plan: Plan, identity: Identity) -> dict[str, Any]:
    """The `template` of a stage or an End Model, as a manifest."""
    if identity.role == "end-model":
        return _template_fields(spec.end_model.template)
    stages, name = spec.stages, plan.stages[identity.index - 1].name
    # The plan may be older than the spec: a stage that the list no longer has keeps no template.
    asked = stages if stages.items is None else next((item for item in stages.items if item.name == name), None)
    return _template_fields(None if asked is None else asked.template)


def store_template(spec: PipeSpec) -> dict[str, Any]:
    """The store goes where the End Model may go, and needs neither its GPU nor its memory; what its own template has
    takes precedence, field by field.
    """
    return {**_template_fields(spec.end_model.store_template), **_template_fields(spec.templates.get("store.template"))}


def hub_mirror(pipe: LanguagePipe, settings: OperatorSettings) -> str:
    """The address that stands for the Hub's; empty where the model comes from elsewhere or there is no mirror."""
    return settings.hub_endpoint if _comes_from_the_hub(pipe) else ""


def proxy_variables(pipe: LanguagePipe, settings: OperatorSettings) -> dict[str, str]:
    """The variables by which a store finds its proxy; none where it reads a volume. Those that its template names, in
    capitals or not, are left to the template.
    """
    if not settings.hub_proxy or pipe.spec.model.source.startswith("pvc://"):
        return {}
    found = {"HTTP_PROXY": settings.hub_proxy, "HTTPS_PROXY": settings.hub_proxy, "NO_PROXY": settings.hub_no_proxy}
    asked = _store_variables(pipe.spec)
    return {name: value for name, value in found.items() if value and name not in asked}


def proxies(pipe: LanguagePipe, settings: OperatorSettings) -> tuple[str, ...]:
    """The addresses of the proxies that a store may use: the operator's, and those that its template writes out."""
    found = {**_store_variables(pipe.spec), **proxy_variables(pipe, settings)}
    return tuple(sorted({found.get(name, "") for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")} - {""}))


def _store_variables(spec: PipeSpec) -> dict[str, str]:
    """Those that the store's template names, in capitals; empty where their values stand elsewhere."""
    template = spec.templates.get("store.template")
    return {} if template is None else {variable.name.upper(): variable.value or "" for variable in template.env}


def hub_authorities(pipe: LanguagePipe, settings: OperatorSettings) -> str:
    """The further authorities (PEM) that the Hub may be signed by; empty where the model comes from elsewhere."""
    return settings.hub_ca_bundle if _comes_from_the_hub(pipe) else ""


def hub_authorities_name(pipe: LanguagePipe, settings: OperatorSettings) -> str | None:
    """The name of their ConfigMap. It follows from the content: other authorities are another name, and another pod."""
    bundle = hub_authorities(pipe, settings)
    return names.hub_ca(pipe.name, digest(bundle)) if bundle else None


def _comes_from_the_hub(pipe: LanguagePipe) -> bool:
    return pipe.spec.model.source.startswith("hf://")


def _of_every_pod(settings: OperatorSettings) -> dict[str, Any]:
    """The operator's settings that shape every pod: only where they are not at their default."""
    found: dict[str, Any] = {} if settings.fixed_ids else {"fixed_ids": False}
    if settings.image_pull_secrets:
        found["pull_secrets"] = list(settings.image_pull_secrets)
    return found


def _template_fields(template: StoreTemplate | None) -> dict[str, Any]:
    """A `template` as a manifest, with only the fields that its author wrote; {} where there is none."""
    if template is None:
        return {}
    found: dict[str, Any] = template.pod_fields()
    if template.resources is not None:
        found["resources"] = template.resources.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return found
