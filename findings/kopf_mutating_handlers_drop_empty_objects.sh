#!/usr/bin/env bash
# In a mutating handler of kopf, `patch.spec["x"] = {}` does nothing, and removing the only field of spec removes spec.
#
# Package    kopf 1.45.2.
# Behaviour  A handler changes the object through its argument `patch`. In the handlers of events it is sent as a JSON
#            merge patch. In those of admission it becomes a JSON patch, by Patch.as_json_patch, whose documentation says
#            that changes may disappear where they would change nothing. An empty mapping disappears where the field is
#            absent, though it would change something; and where the last field of a mapping is removed, the mapping
#            goes with it, and its parents, as far as they become empty.
# Seen       no operation at all for {"spec": {"cache": {}}}; {"op": "remove", "path": "/spec"} for a field of spec set
#            to None, where it was the only one or where spec was {} all along.
# Source     _apply_patch of Patch walks the entries of a mapping, of which an empty one has none. For None it calls
#            dicts.remove, which prunes empty parents upwards.
# Effect     To Kubernetes, {} is not nothing: `emptyDir: {}`, `podSelector: {}`, and every structure that has defaults.
#            Such a default is never set by the webhook; and a webhook that clears a deprecated field, set or not, takes
#            away the spec with it, whose absence the schema refuses, or which then means something else.
# Instead    Set a mapping of at least one field, or change the body in a transformation function: patch.fns.append(
#            lambda body: body["spec"].update(cache={})), from which the JSON patch is made as it should be.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kopf==1.45.2
"$folder/venv/bin/python" - <<'PYTHON'
import jsonpatch  # a requirement of kopf's
import kopf

META = {"metadata": {"name": "a", "namespace": "default"}}


def mutated(spec: dict, change) -> dict:
    """What the API server makes of the object after the handler `change`."""
    body = {**META, "spec": spec}
    patch = kopf.Patch(body=kopf.Body(body))
    change(patch)
    operations = patch.as_json_patch()
    print(f"spec {spec!s:26} patch {dict(patch)!s:32} {operations}")
    return jsonpatch.apply_patch(body, operations)


def setting(name: str, value: object):
    return lambda patch: patch.spec.update({name: value})


assert mutated({"size": 1}, setting("cache", {"size": 2})) == {**META, "spec": {"size": 1, "cache": {"size": 2}}}
assert mutated({"size": 1}, setting("names", [])) == {**META, "spec": {"size": 1, "names": []}}, "an empty list is lost"
assert mutated({"size": 1}, setting("cache", {})) == {**META, "spec": {"size": 1}}, "changed: an empty mapping is set"

assert mutated({"size": 1, "old": 1}, setting("old", None)) == {**META, "spec": {"size": 1}}, "a field is not removed"
assert mutated({"old": 1}, setting("old", None)) == META, "changed: spec stays where its only field is removed"
assert mutated({}, setting("old", None)) == META, "changed: an empty spec stays where nothing is removed"
nested = mutated({"size": 1, "cache": {"old": 1}}, lambda patch: patch.spec.update({"cache": {"old": None}}))
assert nested == {**META, "spec": {"size": 1}}, "changed: an inner mapping stays where its only field is removed"

by_function = mutated({"size": 1}, lambda patch: patch.fns.append(lambda body: body["spec"].update(cache={})))
assert by_function == {**META, "spec": {"size": 1, "cache": {}}}, "changed: a function does not help"
print("as found: empty mappings are not set, and emptied ones are removed")
PYTHON
