"""What the weights store is rendered with: a mirror of the Hub, and the authorities that sign it."""

from __future__ import annotations

from typing import Any

from languagepipes_operator.certificates.authority import new_ca
from languagepipes_operator.names import ANNOTATION_INPUTS
from support.example_pipes import (
    container_of,
    living,
    of_kind,
    pipe_snapshot,
    pod_of,
    rendered,
    settings,
    store_children,
)


def test_only_stores_of_hub_sources_use_a_mirror_of_the_hub() -> None:
    mirrored = settings(hub_endpoint="https://hub.example")

    def environment(source: str) -> dict[str, str]:
        children = store_children(pipe_snapshot(source=source), mirrored)
        return {item["name"]: item["value"] for item in container_of(of_kind(children, "Deployment")[0])["env"]}

    assert environment("hf://Qwen/Qwen3-8B")["HF_ENDPOINT"] == "https://hub.example"
    assert "HF_ENDPOINT" not in environment("pvc://weights/qwen3")


def test_a_mirror_that_comes_later_changes_no_store_of_another_source() -> None:
    for source, changes in (("hf://Qwen/Qwen3-8B", True), ("pvc://weights/qwen3", False)):
        before = store_children(pipe_snapshot(source=source), settings())
        after = store_children(
            living(pipe_snapshot(source=source), before), settings(hub_endpoint="https://hub.example")
        )
        assert (after != before) is changes


def test_stores_that_fetch_use_the_proxy_and_a_pipe_may_name_another() -> None:
    def variables(**spec: Any) -> dict[str, Any]:
        children = rendered(pipe_snapshot(**spec), hub_proxy="http://proxy:3128", hub_no_proxy=".svc")
        (store,) = of_kind(children, "Deployment", "store")
        return {
            each["name"]: each.get("value") for each in container_of(store)["env"] if "PROXY" in each["name"].upper()
        }

    ours = {"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".svc"}
    assert variables() == variables(source="https://mirror.example/models") == ours
    assert variables(source="pvc://weights/qwen3") == {}
    own = [{"name": "https_proxy", "value": "http://other:8080"}]
    assert variables(store={"template": {"env": own}}) == {
        "HTTP_PROXY": ours["HTTP_PROXY"], "NO_PROXY": ".svc", "https_proxy": "http://other:8080"
    }  # fmt: skip


def test_a_proxy_that_comes_later_changes_the_stores_that_fetch_and_no_member() -> None:
    def inputs(source: str, **changed: Any) -> dict[str, str]:
        deployments = of_kind(rendered(pipe_snapshot(source=source), **changed), "Deployment")
        return {each["metadata"]["name"]: each["metadata"]["annotations"][ANNOTATION_INPUTS] for each in deployments}

    for source, changes in (("hf://Qwen/Qwen3-8B", {"store"}), ("pvc://weights/qwen3", set())):
        before, after = inputs(source), inputs(source, hub_proxy="http://proxy:3128")
        assert {name.split("-")[1] for name in before if before[name] != after[name]} == changes


def authorities(*names: str) -> str:
    return "".join(new_ca("hub", name).certificate.decode() for name in names)


def test_only_stores_of_hub_sources_mount_authorities_of_the_hub() -> None:
    bundle = authorities("one", "two")

    children = rendered(pipe_snapshot(), hub_ca_bundle=bundle)
    (config_map,) = of_kind(children, "ConfigMap", "store")
    (store,) = of_kind(children, "Deployment", "store")
    mounts = {mount["name"]: mount for mount in container_of(store)["volumeMounts"]}
    environment = {item["name"]: item["value"] for item in container_of(store)["env"]}

    assert config_map["data"] == {"ca.crt": bundle}
    volume = {"name": "hub-ca", "configMap": {"name": config_map["metadata"]["name"]}}
    assert volume in pod_of(store)["volumes"]
    assert mounts["hub-ca"]["readOnly"] is True
    assert environment["LANGUAGEPIPES_HUB_CA_FILE"] == f"{mounts['hub-ca']['mountPath']}/ca.crt"
    for deployment in of_kind(children, "Deployment"):
        assert (volume in pod_of(deployment)["volumes"]) is (deployment is store)
    elsewhere = {"source": "pvc://weights/qwen3"}
    assert rendered(pipe_snapshot(**elsewhere), hub_ca_bundle=bundle) == rendered(pipe_snapshot(**elsewhere))


def test_other_authorities_roll_only_the_store_and_none_bring_back_the_first_manifest() -> None:
    snapshot = pipe_snapshot()
    plain = rendered(snapshot)
    before = rendered(living(snapshot, plain), hub_ca_bundle=authorities("one"))

    after = rendered(living(snapshot, before), hub_ca_bundle=authorities("another"))
    again = rendered(living(snapshot, after))

    (old,), (new,) = (of_kind(manifests, "ConfigMap", "store") for manifests in (before, after))
    assert new["metadata"]["name"] != old["metadata"]["name"]
    unlike = [one["metadata"]["labels"]["languagepipes.io/role"] for one in after if one not in before]
    assert unlike == ["store", "store"]  # the ConfigMap and the Deployment
    assert again == plain
