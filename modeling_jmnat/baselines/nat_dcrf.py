"""NAT-DCRF: a linear-chain CRF on the basic NAT (Sun et al., NeurIPS 2019, "Fast Structured Decoding for Sequence
Models"). The CRF is that of `crf_jmnat.py`, which JM-NAT may have as well; here nothing of the target is given."""

from huggingface_hub.dataclasses import strict

from .base import NatConfig, NatForConditionalGeneration, option


@strict
class NatDcrfConfig(NatConfig):
    model_type = "nat_dcrf"
    crf_rank: int = option(32, "r, rank of the transitions.", 1)
    crf_loss_weight: float | int = option(2.0, "Weight of the CRF's loss; the paper weighs the NAT's by 0.5 to it.")


class NatDcrfForConditionalGeneration(NatForConditionalGeneration):
    config: NatDcrfConfig
