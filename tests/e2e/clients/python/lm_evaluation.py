import json
import os
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

weights, task = sys.argv[1:]
tasks = TaskManager(include_path=str(Path(task).parent), include_defaults=False)
server = {
    "model": "demo",
    "base_url": f"{os.environ['CHAT_URL']}/v1/completions",
    "tokenizer": weights,
    "num_concurrent": 4,
    "max_retries": 1,
    "tokenized_requests": True,
}


def evaluate(model: str, arguments: dict) -> dict:
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[Path(task).stem], task_manager=tasks, device="cpu", batch_size=4
    )
    (samples,) = results["samples"].values()
    (metrics,) = results["results"].values()
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return {
        "metrics": {name: metrics[name] for name in ("acc,none", "acc_norm,none")},
        "scores": [list(scored) for sample in ordered for (scored,) in sample["resps"]],
    }


print(
    json.dumps(
        {
            "transformers": evaluate("hf", {"pretrained": weights, "dtype": "float32"}),
            "server": evaluate("local-completions", server),
            "server, text": evaluate("local-completions", {**server, "tokenized_requests": False}),
        }
    )
)
