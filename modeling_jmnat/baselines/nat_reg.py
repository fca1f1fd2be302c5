"""NAT-Reg: regularisation against repeated and missing words (Wang et al., AAAI 2019, "Non-Autoregressive Machine
Translation with Auxiliary Regularization").

    L = L_NAT + a L_sim + b L_rec

L_sim: neighbouring states of the decoder are not to be alike where the embeddings of the reference's words there are
not, so that different words have different states. L_rec: a frozen autoregressive model that translates backwards
(`--guide`) is to find the source in the translation. It reads the expected embedding of each predicted word, through
which the gradient comes; in the paper it reads the decoder's states, which a frozen model could make nothing of.

The paper has a = 2 and b = 0.5; here a is 1. With 2, states of a small model took turns between two directions that
say nothing of the words, which were predicted worse and repeated as often; with 1, fewer were repeated and more right.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict

from .base import NatConfig, NatForConditionalGeneration, option


@strict
class NatRegConfig(NatConfig):
    model_type = "nat_reg"
    similarity_weight: float | int = option(1.0, "Weight of the similarity of neighbours within the system's loss.")
    back_translation_weight: float | int = option(0.5, "Weight of the back-translation within the system's loss.")


def similarity_loss(states: torch.Tensor, embeddings: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """Sum over neighbours of 1 + cos(h_t, h_t+1) (1 - cos(e_t, e_t+1)): equal words may have equal states.

    Args:
        states, embeddings: (B, T, D) of the decoder and of the reference's words.
        is_token: (B, T) bool.
    """
    alike, words_alike = (
        F.cosine_similarity(x[:, 1:].float(), x[:, :-1].float(), dim=-1) for x in (states, embeddings.detach())
    )
    return ((1 + alike * (1 - words_alike)) * is_token[:, 1:]).sum()


def back_translation_loss(guide, logits: torch.Tensor, is_token: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Sum over source tokens of -log P(source | expected translation) of the model `guide`.

    Args:
        logits: (B, T, V) of the translation.
        source: (B, S), -100 at padding.
    """
    table = guide.get_input_embeddings().weight  # (V, D)
    scale = table.shape[1] ** 0.5 if guide.config.scale_embedding else 1.0
    expected = logits[..., : len(table)].softmax(dim=-1) @ table * scale
    read = source.masked_fill(source == -100, guide.config.pad_token_id)
    read = F.pad(read[:, :-1], (1, 0), value=guide.config.decoder_start_token_id)
    found = guide(inputs_embeds=expected, attention_mask=is_token.long(), decoder_input_ids=read, use_cache=False)
    return F.cross_entropy(found.logits.flatten(0, 1).float(), source.flatten(), ignore_index=-100, reduction="sum")


class NatRegForConditionalGeneration(NatForConditionalGeneration):
    config: NatRegConfig
    needs_guide = "an autoregressive model that translates backwards"
    guide_is_teacher = False
    needs_logits = True

    def hints(self, batch, guide, progress):
        return {"guide": guide}

    def system_loss(self, result, outputs, labels, hints):
        is_token = labels != -100
        embeddings = self.model.decoder.embed_tokens(labels.clamp(min=0))
        loss = self.config.similarity_weight * similarity_loss(outputs.last_hidden_state, embeddings, is_token)
        if hints["guide"] is None or not self.config.back_translation_weight:
            return loss
        source = hints["input_ids"].masked_fill(~hints["attention_mask"], -100)
        back = back_translation_loss(hints["guide"], result.logits, is_token, source)
        return loss + self.config.back_translation_weight * back
