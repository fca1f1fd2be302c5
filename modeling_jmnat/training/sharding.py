"""FSDP 2: weights, gradients and the optimizer's state divided among the processes of a training.

Checkpoints are those of other trainings: whole weights in `model.safetensors`, the optimizer's whole state in
`optimizer.pt`, there by the names of the weights. So another number of processes can go on from them.
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

if torch.distributed.is_available():  # not in every build
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
    """Prepare to divide a model on CPUs as on GPUs; Accelerate forgets there without a word that it was asked to.

    The training's arguments or the environment, as `accelerate launch` sets it, may ask.

    Returns:
        Whether the model is going to be divided for this reason.
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
    """Divide the weights, each layer's in a group of its own and all others in one.

    Accelerate leaves a model as it is that comes to it so. It would put the embedding of the source and the output
    projection into another group than the embedding of the target, though all are one matrix, which PyTorch refuses.
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
    plugin.auto_wrap_policy = None  # done


def is_sharded(model: nn.Module) -> bool:
    return torch.distributed.is_available() and isinstance(model, FSDPModule)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be divided among the processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """An ordinary copy of a divided model, on each process; all must ask for it."""
    original = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    with torch.random.fork_rng(devices=[]):  # dropout goes on as if there had been no copy
        whole = original(copy.deepcopy(model.config))
    whole.load_state_dict({name: whole_tensor(value) for name, value in model.state_dict().items()})
    whole.generation_config = model.generation_config
    return whole.to(next(model.parameters()).device).eval()


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load whole weights, which need not be all, into a model that may be divided."""
    if is_sharded(model):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        model.load_state_dict(weights, strict=False)


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of the optimizer of a divided model, whole on the first process; all must ask for it."""
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `whole_optimizer_state` gave."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
