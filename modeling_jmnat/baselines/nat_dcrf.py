"""NAT-DCRF: a linear-chain CRF on the basic NAT (Sun et al., NeurIPS 2019, "Fast Structured Decoding for Sequence
Models"). The CRF is that of `crf_jmnat.py`, which JM-NAT may have as well; here nothing of the target is given, and
the CRF's marginals alone are the probabilities by which a length is chosen."""

from huggingface_hub.dataclasses import strict

from .base import NatConfig, NatForConditionalGeneration, option


@strict
class NatDcrfConfig(NatConfig):
    model_type = "nat_dcrf"
    crf_rank: int = option(32, "r, rank of the transitions.", 1)
    crf_loss_weight: float | int = option(2.0, "Weight of the CRF's loss; the paper weighs the NAT's by 0.5 to it.")


class NatDcrfForConditionalGeneration(NatForConditionalGeneration):
    config: NatDcrfConfig

    def __init__(self, config: NatDcrfConfig):
        super().__init__(config)
        self.crf.network_share = 0.0
