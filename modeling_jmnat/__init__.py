"""JM-NAT: jointly masked non-autoregressive translation for Hugging Face Transformers (Guo, Xu, Chen, ACL 2020)."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_jmnat import JMNatConfig, JMNatGenerationConfig
from .generation_jmnat import JMNatGenerateOutput
from .inference.cuda_graphs import StaticShapeJMNat
from .inference.onnx_runtime import ORTJMNatForConditionalGeneration
from .modeling_jmnat import JMNatForConditionalGeneration, JMNatModel, JMNatSeq2SeqLMOutput
from .pipeline import JMNatTranslationPipeline
from .tokenization_jmnat import JMNatTokenizer
from .training.callbacks import EpochCallback
from .training.data_collator import DataCollatorForJMNat
from .training.trainer import JMNatTrainer, JMNatTrainingArguments

AutoConfig.register("jmnat", JMNatConfig, exist_ok=True)
AutoModel.register(JMNatConfig, JMNatModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(JMNatConfig, JMNatForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(JMNatConfig, tokenizer_class=JMNatTokenizer, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "nat-translation", pipeline_class=JMNatTranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
)

__version__ = "0.1.0"

__all__ = [
    "DataCollatorForJMNat",
    "EpochCallback",
    "JMNatConfig",
    "JMNatForConditionalGeneration",
    "JMNatGenerateOutput",
    "JMNatGenerationConfig",
    "JMNatModel",
    "JMNatSeq2SeqLMOutput",
    "JMNatTokenizer",
    "JMNatTrainer",
    "JMNatTrainingArguments",
    "JMNatTranslationPipeline",
    "ORTJMNatForConditionalGeneration",
    "StaticShapeJMNat",
]
