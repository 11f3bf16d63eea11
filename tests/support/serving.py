"""What end-to-end tests do with pipes: fill a claim with weights, apply a pipe, watch it, ask it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.kubectl import Kubectl, wait_for
from support.waiting import PATIENCE_SECONDS

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CLAIM = "models"
# By default each member asks for half a CPU, and two nodes of two CPUs hold one replica. With this, one node holds all.
SMALL = {"resources": {"requests": {"cpu": "100m"}}}
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# A chat client as in any application: one line a chunk, so that a test sees that it was a stream.
ASK = """
import json, sys, openai
question = json.loads(sys.argv[1])
client = openai.OpenAI(base_url=question.pop("url"), api_key=question.pop("key", "none"), max_retries=0, timeout=120)
for chunk in client.chat.completions.create(stream=True, temperature=0, **question):
    if chunk.choices:
        print(json.dumps(chunk.choices[0].delta.content or ""), flush=True)
"""


@dataclass(frozen=True)
class Images:
    """Names of the images under test, as both nodes can pull them."""

    node: str
    operator: str
    client: str
    models: str


def fill_claim(kubectl: Kubectl, images: Images, claim: str = CLAIM) -> None:
    """A claim with SmolLM2's GGUF file in it, as a platform engineer brings weights into a cluster without internet."""
    kubectl.apply(
        _claim(claim),
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"fill-{claim}"},
            "spec": {
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "securityContext": {"fsGroup": 65532},
                        "containers": [
                            {
                                "name": "copy",
                                "image": images.models,
                                "imagePullPolicy": "IfNotPresent",
                                "args": ["/volume"],
                                "securityContext": RESTRICTED,
                                "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
                            }
                        ],
                        "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": claim}}],
                    }
                }
            },
        },
    )
    kubectl("wait", "--for=condition=Complete", f"job/fill-{claim}", "--timeout=300s", timeout_seconds=310)


def copy_to_claim(kubectl: Kubectl, images: Images, claim: str, directories: Iterable[Path]) -> None:
    """A claim with these directories in it, copied from this machine by way of a pod that is gone afterwards."""
    volume = {"name": "volume", "persistentVolumeClaim": {"claimName": claim}}
    container = {
        "name": "copy",
        "image": images.client,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-c", "import signal; signal.pause()"],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
    }
    kubectl.apply(
        _claim(claim),
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"fill-{claim}"},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"fsGroup": 65532},
                "containers": [container],
                "volumes": [volume],
            },
        },
    )
    kubectl("wait", "--for=condition=Ready", f"pod/fill-{claim}", "--timeout=300s", timeout_seconds=310)
    for directory in directories:
        kubectl("cp", "--no-preserve", str(directory), f"fill-{claim}:/volume/{directory.name}")
    kubectl("delete", "pod", f"fill-{claim}")


def _claim(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def pipe(name: str = "smollm2", *, model: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """SmolLM2 from the claim, in float32 (whose greedy answers no rounding decides), over three stages."""
    return {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": name},
        "spec": {
            "model": {
                "source": f"pvc://{CLAIM}/{MODEL_FILE}",
                "dtype": "float32",
                "maxContextLength": 1024,
                **(model or {}),
            },
            "endModel": {"template": SMALL},
            "stages": {"count": 3, "template": SMALL},
            **spec,
        },
    }


def condition(kubectl: Kubectl, kind: str, name: str = "smollm2") -> dict[str, Any] | None:
    """One condition of the pipe, or None while it has none of that type."""
    conditions = kubectl.get("languagepipe", name).get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), None)


def wait_condition(
    kubectl: Kubectl,
    kind: str,
    status: str,
    *,
    name: str = "smollm2",
    reason: str | None = None,
    timeout_seconds: float = PATIENCE_SECONDS,
) -> dict[str, Any]:
    """The condition once it has this status (and reason). On time-out, says what was there instead."""
    last: dict[str, Any] | None = None

    def holds() -> dict[str, Any] | None:
        nonlocal last
        last = condition(kubectl, kind, name)
        good = last is not None and last["status"] == status and reason in (None, last["reason"])
        return last if good else None

    try:
        return wait_for(f"{kind}={status} {reason or ''}", holds, timeout_seconds=timeout_seconds)
    except AssertionError as error:
        pods = kubectl("get", "pods", "-o", "wide")
        described = kubectl("describe", "languagepipe", name)
        raise AssertionError(f"{error}; it is {json.dumps(last)}\n{pods}\n{described}") from error


def wait_for_reason(
    kubectl: Kubectl, name: str, reason: str, text: str, *, seconds: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """Ready=False with this reason and text (regular expressions)."""
    end = time.monotonic() + seconds
    last: dict[str, Any] = {}
    while time.monotonic() < end:
        conditions = kubectl.get("lp", name).get("status", {}).get("conditions", [])
        last = next((found for found in conditions if found["type"] == "Ready"), {})
        good = last.get("status") == "False" and re.fullmatch(reason, last["reason"])
        if good and re.search(text, last["message"], re.DOTALL):
            return last
        time.sleep(1)
    pods = kubectl("get", "pods", "-o", "wide")
    raise AssertionError(
        f"Ready was not False with {reason} ~ {text}, but {last}\n{pods}\n{kubectl('describe', 'lp', name)}"
    )


def wait_ready(kubectl: Kubectl, name: str = "smollm2", *, timeout_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """The pipe once it is Ready for its present generation."""
    wait_for(
        "a status of the present generation",
        lambda: (
            (seen := kubectl.get("languagepipe", name)).get("status", {}).get("observedGeneration")
            == seen["metadata"]["generation"]
        ),
        timeout_seconds=timeout_seconds,
    )
    wait_condition(kubectl, "Ready", "True", name=name, timeout_seconds=timeout_seconds)
    return kubectl.get("languagepipe", name)


class Client:
    """A pod with the openai package, which stays up so that questions cost no pod each."""

    def __init__(self, kubectl: Kubectl, images: Images, name: str = "client") -> None:
        self._kubectl, self._name = kubectl, name
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [
                        {
                            "name": "client",
                            "image": images.client,
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["-c", "import signal; signal.pause()"],
                            "securityContext": RESTRICTED,
                            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "10m"}},
                            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                        }
                    ],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            }
        )
        kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s", timeout_seconds=310)

    def ask(self, url: str, question: str, *, model: str = "smollm2", max_tokens: int = 40, **more: Any) -> list[str]:
        """The greedy answer, as the pieces that were streamed. Raises CommandFailed with the client's error."""
        request = {
            "url": url,
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            **more,
        }
        output = self._kubectl("exec", self._name, "--", "python", "-c", ASK, json.dumps(request))
        return [json.loads(line) for line in output.splitlines()]
