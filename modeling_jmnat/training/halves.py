"""Freeze the encoder or the decoder, or restart it, to see which half learns what (section 3, figure 1).

The whole network is frozen to give a trained model a CRF, which then learns alone.
"""

from ..modeling_jmnat import JMNatForConditionalGeneration, JMNatStack
from .options import check_half


def half_of(model: JMNatForConditionalGeneration, half: str) -> JMNatStack:
    check_half("half", half)
    return model.get_encoder() if half == "encoder" else model.get_decoder()


def freeze_half(model: JMNatForConditionalGeneration, half: str) -> None:
    """Train only the other half. The token embeddings, which both halves share, are frozen as well."""
    half_of(model, half).requires_grad_(False)


def freeze_network(model: JMNatForConditionalGeneration) -> None:
    """Train the CRF alone, behind a network without dropout. The configuration keeps it for other trainings."""
    model.model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    for module in model.model.modules():
        for name in ("dropout", "activation_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)


def restart_half(model: JMNatForConditionalGeneration, half: str) -> None:
    """Give one half new random weights, except for the token embeddings, which both halves share."""
    fresh = half_of(JMNatForConditionalGeneration(model.config), half).state_dict()
    shared = [name for name in fresh if name.startswith("embed_tokens.")]
    for name in shared:
        del fresh[name]
    missing, unexpected = half_of(model, half).load_state_dict(fresh, strict=False)
    if missing != shared or unexpected:
        raise RuntimeError(f"weights of the {half} do not fit: {missing} {unexpected}")
