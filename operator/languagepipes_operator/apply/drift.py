"""Whether a live object still holds all that was applied to it. Pure.

Fields that others added, or that the API server filled in, are no drift. Lists of named things are
compared by name, all other lists as a whole (as server-side apply owns them). Quantities are compared by amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from languagepipes_api.quantity import parse_resource_quantity

from languagepipes_operator.kube.kinds import Manifest

# Lists that server-side apply merges by key (x-kubernetes-list-map-keys), by the field that holds them.
_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
# Maps that server-side apply owns as a whole (x-kubernetes-map-type: atomic).
_ATOMIC_MAPS = frozenset(
    {"selector", "podSelector", "namespaceSelector", "labelSelector", "nodeSelector", "matchLabels", "secretKeyRef"}
)
_QUANTITIES = frozenset({"requests", "limits"})


def differences(desired: Manifest, live: Manifest) -> list[str]:
    """Where `live` is not what `desired` says, as paths; empty if all of it is there.

    status, and what identifies the object, are left out.
    """
    found: list[str] = []
    for key, value in desired.items():
        if key in ("apiVersion", "kind", "status"):
            continue
        if key == "metadata":
            value = {name: value[name] for name in ("labels", "annotations", "ownerReferences") if name in value}
        found += _missing(value, live.get(key), path=key, field=key)
    return found


def _missing(desired: Any, live: Any, *, path: str, field: str) -> Iterator[str]:
    if desired is None or desired in ({}, []):
        # An empty selector selects all, an empty list means none: it differs only from one that is not empty.
        if live not in (None, {}, []) and (field in _ATOMIC_MAPS or isinstance(desired, list)):
            yield path
    elif isinstance(desired, Mapping):
        if not isinstance(live, Mapping) or (field in _ATOMIC_MAPS and live.keys() != desired.keys()):
            yield path
        else:
            for key, value in desired.items():
                yield from _missing(value, live.get(key), path=f"{path}.{key}", field=key if field != "data" else "")
            return
    elif isinstance(desired, list):
        yield from _missing_items(desired, live, path=path, field=field)
    elif not _same(desired, live, quantity=_in_quantities(path)):
        yield path


def _missing_items(desired: Sequence[Any], live: Any, *, path: str, field: str) -> Iterator[str]:
    if not isinstance(live, list):
        yield path
        return
    keys = _keys_of(field, path, desired)
    if not keys:
        if len(desired) != len(live):
            yield path
            return
        for place, (wanted, found) in enumerate(zip(desired, live, strict=True)):
            yield from _missing(wanted, found, path=f"{path}[{place}]", field="")
        return
    by_key = {_key(item, keys): item for item in live if isinstance(item, Mapping)}
    for wanted in desired:
        key = _key(wanted, keys)
        yield from _missing(wanted, by_key.get(key), path=f"{path}[{'/'.join(map(str, key))}]", field="")


def _keys_of(field: str, path: str, desired: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(item, Mapping) for item in desired):
        return ()
    if field == "ports":
        if path.startswith("spec.template"):
            return ("containerPort", "protocol")
        # A Service's ports are a map, a policy's are not.
        return ("port", "protocol") if path == "spec.ports" else ()
    return _MERGE_KEYS.get(field, ())


def _key(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    # protocol is the only key that the API server fills in.
    return tuple(item.get(key, "TCP" if key == "protocol" else None) for key in keys)


def _in_quantities(path: str) -> bool:
    parts = path.split(".")
    return (len(parts) > 1 and parts[-2] in _QUANTITIES) or "sizeLimit" in parts[-1:]


def _same(desired: Any, live: Any, *, quantity: bool) -> bool:
    if type(desired) is type(live) and desired == live:
        return True
    if quantity and live is not None:
        return _amount(desired) == _amount(live)
    # int-or-string fields come back as they were sent; true is not 1.
    return not isinstance(desired, bool) and not isinstance(live, bool) and desired == live


def _amount(value: Any) -> Fraction | str:
    """A quantity's amount where it is one (250m, 0.25, 1Gi), else the text."""
    try:
        return parse_resource_quantity(value)
    except (ValueError, TypeError):
        return str(value)
