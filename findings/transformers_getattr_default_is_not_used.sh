#!/usr/bin/env bash
# getattr(config, "head_dim", default) raises RuntimeError for a Gemma 4 configuration of transformers.
#
# Package    transformers 5.24.0 (without torch).
# Behaviour  Layers of Gemma 4 differ in their head size, so the configuration refuses to answer for all of them:
#            reading config.head_dim raises AmbiguousGlobalPerLayerAttributeError. That is a RuntimeError and no
#            AttributeError, so the default of getattr is not used, and hasattr raises too.
# Seen       "'head_dim' is a per-layer attribute and may vary across layers. Access it via the individual layer
#            configs …"
# Source     in integrations/heterogeneity/configuration_utils.py, __getattribute__ of HeterogeneousConfigMixin raises
#            the error for every attribute that may differ between layers; the class derives from RuntimeError.
# Effect     The usual `getattr(config, "head_dim", None) or hidden_size // heads`, meant for any family, fails for
#            this one.
# Instead    Read config.to_dict(), or config.per_layer_config[i] for each layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check transformers==5.24.0
HF_HOME="$folder/hub" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
from transformers import Gemma3TextConfig, Gemma4TextConfig

print("Gemma 3:", getattr(Gemma3TextConfig(), "head_dim", None))
config = Gemma4TextConfig()
for read in (lambda: getattr(config, "head_dim", None), lambda: hasattr(config, "head_dim")):
    try:
        answer = read()
    except RuntimeError as error:
        assert not isinstance(error, AttributeError), "changed: it is an AttributeError, which getattr takes"
        print(f"Gemma 4: {type(error).__name__}({type(error).__mro__[1].__name__}): {str(error)[:70]} …")
    else:
        raise SystemExit(f"changed: head_dim is answered with {answer!r}")
sizes = [layer.head_dim for layer in config.per_layer_config]
print("Gemma 4, layer by layer:", sizes)
assert len(set(sizes)) > 1, "changed: all layers have one head size"
print("as found: getattr with a default and hasattr raise RuntimeError")
PYTHON
