"""Which attention trains fastest on a CPU."""

from transformers import PreTrainedModel


def choose_cpu_attention(model: PreTrainedModel, device: str, bf16: bool) -> None:
    """Plain products for training in bf16 on a CPU, where fused attention's backward pass takes half of a step."""
    if bf16 and device == "cpu":
        model.set_attn_implementation("eager")
