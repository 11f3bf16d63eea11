"""Who writes spec.replicas through the scale subresource: a HorizontalPodAutoscaler, or `kubectl scale`. Pure.

metadata.managedFields names the manager, where the API server recorded one. 1.37 does not for a merge patch of a custom
resource's scale: then the value is another one than the default, and nobody owns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from languagepipes_api.spec import PipeSpec

from languagepipes_operator.kube.kinds import Manifest

UNKNOWN = "somebody"
_DEFAULT = PipeSpec.model_fields["replicas"].default


def trimmed_pipe(raw: Manifest) -> Manifest:
    """A LanguagePipe without the managedFields that nobody here reads: most of many objects."""
    metadata = dict(raw["metadata"])
    entries = metadata.pop("managedFields", None) or ()
    kept = [_short(entry) for entry in entries if _owns_replicas(entry) or _sets_autoscaling(entry)]
    if kept:
        metadata["managedFields"] = kept
    return {**raw, "metadata": metadata}


def scale_writer(raw: Manifest) -> str | None:
    """The manager that wrote spec.replicas by the scale subresource after spec.autoscaling was set, or changed; of
    several the last. UNKNOWN where it is not recorded.
    """
    entries = raw["metadata"].get("managedFields") or ()
    since = max((_time(entry) for entry in entries if _sets_autoscaling(entry)), default="")
    writes = [(_time(entry), str(entry.get("manager", ""))) for entry in entries if _scales(entry)]
    later = [write for write in writes if write[0] > since]
    if later:
        return max(later)[1]
    unowned = bool(entries) and not any(map(_owns_replicas, entries))
    return UNKNOWN if unowned and (raw.get("spec") or {}).get("replicas", _DEFAULT) != _DEFAULT else None


def _scales(entry: Mapping[str, Any]) -> bool:
    return entry.get("subresource") == "scale" and _owns_replicas(entry)


def _owns_replicas(entry: Mapping[str, Any]) -> bool:
    return "f:replicas" in _spec(entry)


def _sets_autoscaling(entry: Mapping[str, Any]) -> bool:
    return not entry.get("subresource") and "f:autoscaling" in _spec(entry)


def _spec(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (entry.get("fieldsV1") or {}).get("f:spec") or {}
    return found


def _short(entry: Mapping[str, Any]) -> Manifest:
    fields: Manifest = {name: {} for name in ("f:replicas", "f:autoscaling") if name in _spec(entry)}
    return {**entry, "fieldsV1": {"f:spec": fields}}


def _time(entry: Mapping[str, Any]) -> str:
    # RFC 3339 in UTC, to the second: sorts as text.
    return str(entry.get("time") or "")
