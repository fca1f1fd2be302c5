"""The systems that the paper compares JM-NAT with, each in a module of its own."""

# Module, model type and `--system` of each; what the names of its classes begin with.
SYSTEMS = {
    "nat_ft": "NatFT",
    "nat_ir": "NatIR",
    "nat_reg": "NatReg",
    "fcl_nat": "FclNat",
    "nat_dcrf": "NatDcrf",
    "imitate_nat": "ImitateNat",
}
