"""JM-NAT: jointly masked non-autoregressive translation for Hugging Face Transformers (Guo, Xu, Chen, ACL 2020).

Importing the package loads neither PyTorch nor Transformers: public names are loaded at their first use, and JM-NAT is
registered with the auto classes of Transformers when those are imported, before or after this package.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .utils.imports import LazyClass, when_imported

if TYPE_CHECKING:
    from .configuration_jmnat import JMNatConfig as JMNatConfig
    from .configuration_jmnat import JMNatGenerationConfig as JMNatGenerationConfig
    from .generation_jmnat import JMNatGenerateOutput as JMNatGenerateOutput
    from .inference.cuda_graphs import StaticShapeJMNat as StaticShapeJMNat
    from .inference.onnx_runtime import ORTJMNatForConditionalGeneration as ORTJMNatForConditionalGeneration
    from .modeling_jmnat import JMNatForConditionalGeneration as JMNatForConditionalGeneration
    from .modeling_jmnat import JMNatModel as JMNatModel
    from .modeling_jmnat import JMNatSeq2SeqLMOutput as JMNatSeq2SeqLMOutput
    from .pipeline import JMNatTranslationPipeline as JMNatTranslationPipeline
    from .tokenization_jmnat import JMNatTokenizer as JMNatTokenizer
    from .training.arguments import JMNatTrainingArguments as JMNatTrainingArguments
    from .training.callbacks import EpochCallback as EpochCallback
    from .training.data_collator import DataCollatorForJMNat as DataCollatorForJMNat
    from .training.trainer import JMNatTrainer as JMNatTrainer

__version__ = "0.1.0"

_MODULES = {  # of the public names
    "DataCollatorForJMNat": "training.data_collator",
    "EpochCallback": "training.callbacks",
    "JMNatConfig": "configuration_jmnat",
    "JMNatForConditionalGeneration": "modeling_jmnat",
    "JMNatGenerateOutput": "generation_jmnat",
    "JMNatGenerationConfig": "configuration_jmnat",
    "JMNatModel": "modeling_jmnat",
    "JMNatSeq2SeqLMOutput": "modeling_jmnat",
    "JMNatTokenizer": "tokenization_jmnat",
    "JMNatTrainer": "training.trainer",
    "JMNatTrainingArguments": "training.arguments",
    "JMNatTranslationPipeline": "pipeline",
    "ORTJMNatForConditionalGeneration": "inference.onnx_runtime",
    "StaticShapeJMNat": "inference.cuda_graphs",
}


__all__ = [*_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _lazy(name: str) -> Any:
    return LazyClass(f"{__name__}.{_MODULES[name]}", name)


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING.register("jmnat", _lazy("JMNatConfig"), exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_MAPPING

    from .configuration_jmnat import JMNatConfig

    MODEL_MAPPING.register(JMNatConfig, _lazy("JMNatModel"), exist_ok=True)
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING.register(JMNatConfig, _lazy("JMNatForConditionalGeneration"), exist_ok=True)


def _register_systems() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from .baselines import SYSTEMS  # a cheap import: that module imports nothing

    for name, prefix in SYSTEMS.items():
        CONFIG_MAPPING.register(name, LazyClass(f"{__name__}.baselines.{name}", f"{prefix}Config"), exist_ok=True)


def _register_tokenizer_name() -> None:  # for folders with only a tokenizer
    from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

    REGISTERED_TOKENIZER_CLASSES["JMNatTokenizer"] = _lazy("JMNatTokenizer")


def _register_tokenizer() -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    from .configuration_jmnat import JMNatConfig

    TOKENIZER_MAPPING.register(JMNatConfig, _lazy("JMNatTokenizer"), exist_ok=True)


def _register_pipeline() -> None:
    from transformers import pipelines
    from transformers.models.auto.modeling_auto import AutoModelForSeq2SeqLM

    for task in ("nat-translation", "translation"):
        pipelines.PIPELINE_REGISTRY.register_pipeline(
            task, pipeline_class=_lazy("JMNatTranslationPipeline"), pt_model=AutoModelForSeq2SeqLM, type="text"
        )
    getattr(pipelines, "REMOVED_TASKS", {}).pop("translation", None)  # Transformers' own was removed in version 5
    _prefer_registered_pipeline(pipelines)


def _prefer_registered_pipeline(pipelines: Any) -> None:
    """Let `pipeline` use the class of this package where a configuration names one in the model's folder.

    That one would need `trust_remote_code`, and is still used if it is given.
    """

    class PipelineConfig(pipelines.AutoConfig):
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            config = super().from_pretrained(*args, **kwargs)
            named = config.model_type == "jmnat" and hasattr(config, "custom_pipelines")
            if named and kwargs.get("_from_pipeline") is not None and not kwargs.get("trust_remote_code"):
                del config.custom_pipelines
            return config

    pipelines.AutoConfig = PipelineConfig


_AUTO, _OWN_CONFIG = "transformers.models.auto", f"{__name__}.configuration_jmnat"
when_imported([f"{_AUTO}.configuration_auto"], _register_config)
when_imported([f"{_AUTO}.modeling_auto", _OWN_CONFIG], _register_models)
when_imported([f"{_AUTO}.configuration_auto"], _register_systems)
when_imported([f"{_AUTO}.tokenization_auto"], _register_tokenizer_name)
when_imported([f"{_AUTO}.tokenization_auto", _OWN_CONFIG], _register_tokenizer)
when_imported(["transformers.pipelines"], _register_pipeline)
