"""What can go wrong between a plan, a model's files and a member's memory.

ModelError
├── ArchitectureError    (model.architecture) config.json describes no model that can be served
├── WrongWeights         a tensor is missing or is not what the architecture needs
├── UnsupportedModel     the architecture cannot be computed here
├── OutOfMemory          the KV cache or the weights cannot be allocated
├── DeviceFailed         the GPU takes no more work from this process
└── BatchError           a micro-batch names blocks, positions or rows that do not exist here
"""

from __future__ import annotations


class ModelError(Exception):
    """The message names the object, its numbers and the remedy, and never any text or hidden state."""


class WrongWeights(ModelError):
    """A tensor is missing, or its dtype or shape is not what config.json says."""


class UnsupportedModel(ModelError):
    """The architecture is known, but this device or this transformers version cannot compute it."""


class OutOfMemory(ModelError):
    """An allocation failed; the message says how many bytes were asked for."""


class DeviceFailed(ModelError):
    """An error on the device that outlasts the step (CUDA calls it sticky): only a new process gets a working one."""


class BatchError(ModelError):
    """The batch does not fit this member's KV cache or the hidden state handed over with it."""
