"""The systems that the paper compares JM-NAT with, each in a module of its own."""

# Training options that make a basic NAT (section 3) of any preset; all these systems begin as one.
BASIC_NAT = {"decoder_input": "source_copy", "target_mask": "all", "source_mask_ratio": 0.0, "ngram_loss_weight": 0.0}
# Module, model type and `--system` of each; what the names of its classes begin with.
SYSTEMS = {
    "nat_ft": "NatFT",
    "nat_ir": "NatIR",
    "nat_reg": "NatReg",
    "fcl_nat": "FclNat",
    "nat_dcrf": "NatDcrf",
    "imitate_nat": "ImitateNat",
}
