"""The paper's data sets as recipes: where the text is, how to prepare it, which preset fits, which BLEU to expect.

    jmnat prepare --recipe iwslt14_de_en --output_dir runs/data/iwslt14_de_en

Vocabulary sizes, Moses tokenisation and lower-casing follow section 5.1 of the paper and the fairseq scripts that it
used. The scores are those of its Table 2.
"""

from dataclasses import dataclass

from ..training.presets import load_preset

WMT14 = {"dataset_name": "wmt/wmt14", "dataset_config": "de-en", "moses": True, "vocab_size": 32_000}
WMT14 |= {"max_length_ratio": 1.5}  # fairseq's cleaning
WMT16 = {"dataset_name": "wmt/wmt16", "dataset_config": "ro-en", "moses": True, "vocab_size": 32_000}
# A copy of the text as fairseq's script leaves it: Moses tokens, lower-cased, 160,239 + 7,283 + 6,750 pairs, no BPE.
IWSLT14 = {
    "dataset_name": "bbaaaa/iwslt14-de-en-preprocess",
    "dataset_config": "de-en",
    "dataset_revision": "refs/convert/parquet",
    "lowercase": True,
    "vocab_size": 10_000,
    "max_tokens_per_sentence": 175,
    "max_length_ratio": 1.5,
}


@dataclass(frozen=True)
class Recipe:
    """One data set of the paper.

    Args:
        title: corpus and direction.
        preparation: fields of `PreparationArguments`.
        preset: for the training commands.
        num_length_candidates: C, the target lengths that the paper decodes with.
        bleu: tokenised BLEU to expect on the test set, by system and number of passes k; `teacher` is beam search.
    """

    title: str
    preparation: dict
    preset: str
    num_length_candidates: int
    bleu: dict[str, float]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update with the preset on one device (the paper's B)."""
        training = load_preset(self.preset).training
        return training["max_tokens"] * training.get("gradient_accumulation_steps", 1)

    def describe(self) -> str:
        """The next steps with the prepared data, for a person to read."""
        return (
            f"{self.title}: train and evaluate with\n"
            f"    jmnat reproduce --suite table2 --preset {self.preset} "
            f"--num_length_candidates {self.num_length_candidates} --data DIR --output RUN\n"
            f"({self.tokens_per_step} tokens a step). The paper's tokenised BLEU (tokenized_bleu in RUN/results): "
            + ", ".join(f"{name} {score}" for name, score in self.bleu.items())
        )


def _recipe(title: str, text: dict, languages: str, preset: str, num_length_candidates: int, *bleu: float) -> Recipe:
    source_lang, target_lang = languages.split("-")
    preparation = text | {"source_lang": source_lang, "target_lang": target_lang}
    systems = ("teacher", "CM-NAT k=4", "CM-NAT k=10", "JM-NAT k=4", "JM-NAT k=10")
    return Recipe(title, preparation, preset, num_length_candidates, dict(zip(systems, bleu, strict=True)))


RECIPES = {
    "iwslt14_de_en": _recipe(
        "IWSLT14 German to English", IWSLT14, "de-en", "iwslt14", 4, 32.99, 30.42, 31.71, 31.27, 32.59
    ),
    "wmt14_en_de": _recipe(
        "WMT14 English to German", WMT14, "en-de", "wmt_base", 3, 28.04, 25.94, 27.03, 27.05, 27.69
    ),
    "wmt14_de_en": _recipe(
        "WMT14 German to English", WMT14, "de-en", "wmt_base", 3, 32.69, 29.90, 30.53, 31.51, 32.24
    ),
    "wmt16_en_ro": _recipe(
        "WMT16 English to Romanian", WMT16, "en-ro", "wmt_base", 3, 34.13, 32.53, 33.08, 32.97, 33.52
    ),
    "wmt16_ro_en": _recipe(
        "WMT16 Romanian to English", WMT16, "ro-en", "wmt_base", 3, 34.46, 33.23, 33.31, 33.21, 33.72
    ),
}

# BLEU of other systems in their own papers, one pass without reranking by a teacher (NAT-IR: k = 10): WMT14 En-De and
# De-En, WMT16 En-Ro and Ro-En, IWSLT14 De-En; None if not reported. The last value is the repeated words per sentence
# on IWSLT14's validation text, from Table 3 of the paper.
CITED = {
    "nat_ft": (17.69, 21.47, 27.29, 29.06, None, 2.30),
    "nat_ir": (21.61, 25.48, 29.32, 30.19, None, None),
    "nat_reg": (20.65, 24.77, None, None, None, 0.90),
    "fcl_nat": (21.70, 25.32, None, None, 26.62, None),
    "nat_dcrf": (23.44, 27.22, None, None, None, None),
    "imitate_nat": (22.44, 25.67, 28.61, 28.90, None, None),
}
