"""COMET, a learned score; needs the package unbabel-comet and the folder of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

CHECKPOINT = Path("checkpoints") / "model.ckpt"


def comet_scores(
    folder: str | Path, sources: Sequence[str], references: Sequence[str], use_gpu: bool = False
) -> Callable[[Sequence[str]], list[float]]:
    """A function that returns COMET's score of each translation, from source, translation and reference.

    Args:
        folder: a model as on the Hub, with checkpoints/model.ckpt and hparams.yaml. The checkpoint is a pickle, which
            can run code, so it must be one that you trust.

    Raises:
        ValueError: there is no such model.
        ImportError: unbabel-comet is not installed.
    """
    checkpoint = Path(folder) / CHECKPOINT
    if not checkpoint.is_file():
        raise ValueError(f"comet_model={folder} holds no {CHECKPOINT}: give the folder of a COMET model")
    try:
        from comet import load_from_checkpoint
    except ImportError:
        raise ImportError(
            "comet_model needs the package unbabel-comet; if it conflicts with this version of Transformers, run its "
            "command comet-score elsewhere on the translations that --output stores"
        ) from None
    model = load_from_checkpoint(str(checkpoint))

    def scores(texts: Sequence[str]) -> list[float]:
        rows = [
            {"src": source, "mt": text, "ref": reference}
            for source, text, reference in zip(sources, texts, references, strict=True)
        ]
        return model.predict(rows, gpus=int(use_gpu), progress_bar=False).scores

    return scores
