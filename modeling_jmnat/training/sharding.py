"""FSDP 2: weights, gradients and optimizer state sharded across the processes of a training.

Checkpoints are as in other trainings: full weights in `model.safetensors`, the full optimizer state in `optimizer.pt`,
keyed by the names of the weights. Another number of processes can therefore resume from them.
"""

import copy
import os
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

if torch.distributed.is_available():  # some builds lack it
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor


def shard_on_cpu(accelerator: Accelerator, training: TrainingArguments) -> bool:
    """Prepare to shard a model on CPUs as on GPUs, if asked to; Accelerate silently ignores FSDP on CPUs.

    Either the training arguments ask for it, or environment variables that `accelerate launch` sets.

    Returns:
        Whether the model is to be sharded on CPUs.
    """
    plugin_arguments = getattr(training, "fsdp_plugin_args", None)
    asked = plugin_arguments is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not asked or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_arguments or {}))
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    return True


def shard_model(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Shard the weights, each layer as a group of its own and all others as one group.

    Accelerate leaves a sharded model alone. By itself it would put the source embedding and the output projection into
    another group than the target embedding, which PyTorch refuses because they are one tied matrix.
    """
    if is_sharded(model):
        return
    plugin = accelerator.state.fsdp_plugin
    options = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    }
    layers = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, **options)
    fully_shard(model, **options)
    plugin.auto_wrap_policy = None  # so that Accelerate does not wrap layers again


def is_sharded(model: nn.Module) -> bool:
    return torch.distributed.is_available() and isinstance(model, FSDPModule)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that may be sharded; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """A full copy of a sharded model on each process; all processes must call this."""
    original = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    with torch.random.fork_rng(devices=[]):  # the copy must not affect the random numbers of dropout
        whole = original(copy.deepcopy(model.config))
    whole.load_state_dict({name: whole_tensor(value) for name, value in model.state_dict().items()})
    whole.generation_config = model.generation_config
    return whole.to(next(model.parameters()).device).eval()


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load full weights, of all parameters or of some, into a model that may be sharded."""
    if is_sharded(model):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        model.load_state_dict(weights, strict=False)


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The full optimizer state of a sharded model, on the first process; all processes must call this."""
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer state that `whole_optimizer_state` returned."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
