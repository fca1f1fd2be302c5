"""Every weight is used by its own module's call: offloading, device maps, adapters and quantisation rely on it."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from modeling_jmnat import JMNatTranslationPipeline
from modeling_jmnat.inference.translation import translate_lines
from tests.helpers.random_models import pad, random_batch, random_model, random_sources
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import tiny_student, tiny_tokenizer

OPTIONS = {"num_iterations": 3, "num_length_candidates": 3, "early_stop": True, "return_dict_in_generate": True}
KINDS = {
    "jmnat": {},
    "pre_norm_learned": {"normalize_before": True, "position_embedding_type": "learned"},
    "untied": {"tie_word_embeddings": False, "output_bias": True, "position_offset": 0},
    "crf": {"crf_rank": 3},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def everything(model):
    """All losses and logits of a batch, and translations with their scores."""
    with torch.no_grad():
        outputs = dict(model(**random_batch(model)))
    input_ids, attention_mask = pad(random_sources(model, 5))
    output = model.generate(input_ids, attention_mask=attention_mask, **OPTIONS)
    names = ("sequences", "sequences_scores", "num_passes")
    return {**outputs, **{name: output[name] for name in names}}


def assert_identical(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(actual[name], value), name


def offload_by_layers(model):
    """The weights of a layer exist while that layer is called; those of any other module, while it is."""
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            hook = AlignDevicesHook("cpu", offload=True, place_submodules=True)
            add_hook_to_module(module, hook)
    for module in model.modules():
        if any(parameter.device.type != "meta" for parameter in module.parameters(recurse=False)):
            add_hook_to_module(module, AlignDevicesHook("cpu", offload=True))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def offload_to_disk(model, folder):
    disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def on_disk_in_part(model, folder):
    """As `device_map="auto"` on a machine with memory for half of the model."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    device_map = infer_auto_device_map(
        model, {"cpu": size // 2, "disk": 10 * size}, no_split_module_classes=model._no_split_modules
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "offload",
    [lambda model, folder: cpu_offload(model), offload_to_disk, on_disk_in_part, lambda m, f: offload_by_layers(m)],
    ids=["cpu_offload", "disk_offload", "on_disk_in_part", "by_layers"],
)
def test_offloaded_weights_give_the_same_output(kind, offload, tmp_path):
    model = random_model(3, **KINDS[kind])
    expected = everything(model)
    offload(model, tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    assert_identical(everything(model), expected)
    assert model.device == model.get_encoder().device == torch.device("cpu")


def test_a_device_map_of_transformers(tmp_path):
    """With room for half of the model the rest stays on disk."""
    model = random_model(3)
    expected = everything(model)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", device_map="auto")
    assert_identical(everything(loaded), expected)
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path / "rest"
    )
    assert "disk" in loaded.hf_device_map.values()
    assert_identical(everything(loaded), expected)


def test_offloaded_models_translate_files_and_texts():
    tokenizer = tiny_tokenizer()
    model, lines = tiny_student(tokenizer), random_lines(5, seed=3)
    options = {"num_iterations": 3, "num_length_candidates": 2}
    expected = [line.text for line in translate_lines(model, tokenizer, lines, **options)]
    cpu_offload(model)
    assert [line.text for line in translate_lines(model, tokenizer, lines, **options)] == expected
    translate = JMNatTranslationPipeline(model, tokenizer, device="cpu", split_sentences=False)
    assert [record["translation_text"] for record in translate(lines, **options)] == expected


def test_inputs_are_moved_to_layers_on_another_device():
    """A layer on the device `meta`, as one on a second GPU: what it is called with is moved, also between passes."""
    model = random_model(3)
    input_ids, attention_mask = pad(random_sources(model, 3))
    states, source_mask, _ = model.encode_for_generation(input_ids, attention_mask)
    canvas = torch.full((6, 5), model.config.mask_token_id)
    last = model.get_decoder().layers[-1]
    add_hook_to_module(last, AlignDevicesHook("meta", place_submodules=True))
    state = model.prepare_decoding(states, source_mask, torch.ones(6, 5, dtype=torch.bool))
    assert [keys.device.type for keys, _ in state.key_values] == ["cpu", "meta"]
    assert [probs.device.type for probs in state.position_probs] == ["cpu", "meta"]
    for rows in (torch.arange(6), torch.tensor([0, 1, 4, 5]), torch.tensor([0, 3, 4])):
        # Everything up to the last layer's output, whose data this device does not have.
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            model.model.decoder(canvas[rows], state=state.select(rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_a_gpu_and_on_the_cpu(kind):
    """The same translations whichever device a layer is on; embeddings are where inputs are."""
    model = random_model(3, **KINDS[kind])
    expected = everything(model)
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        split = copy.deepcopy(model).to(first)
        for stack in (split.get_encoder(), split.get_decoder()):
            add_hook_to_module(stack.layers[1], AlignDevicesHook(second, place_submodules=True))
        batch = {name: x.to(first) for name, x in random_batch(model).items()}
        torch.testing.assert_close(split(**batch).loss.cpu(), expected["loss"])
        input_ids, attention_mask = (x.to(first) for x in pad(random_sources(model, 5)))
        output = split.generate(input_ids, attention_mask=attention_mask, **OPTIONS)
        assert torch.equal(output.sequences.cpu(), expected["sequences"])


def lora_model(model, modules):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=modules, r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return adapted


def test_an_adapter_of_the_length_table_learns():
    model = random_model(3, dropout=0.0)
    plain = model.get_encoder()(*pad(random_sources(model, 3))).length_logits
    adapted = lora_model(model, ["embed_lengths"])
    adapted.train()(**random_batch(model)).loss.backward()
    table = adapted.get_base_model().get_encoder().embed_lengths
    gradients = {name: parameter.grad for name, parameter in table.named_parameters() if parameter.requires_grad}
    assert len(gradients) == 2
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())
    with torch.no_grad():
        for parameter in table.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    changed = adapted.get_base_model().get_encoder()(*pad(random_sources(model, 3))).length_logits
    assert (changed - plain)[:, 1:].abs().max() > 0.1


@pytest.mark.parametrize("crf_rank", [0, 3])
def test_adapters_of_all_layers_and_tables_learn(crf_rank):
    model = random_model(3, dropout=0.0, crf_rank=crf_rank)
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    adapted = lora_model(model, sorted(names - {"shared"}))  # which is a name for the tables of encoder and decoder
    adapted.train()(**random_batch(model)).loss.backward()
    missing = [
        name for name, x in adapted.named_parameters() if x.requires_grad and (x.grad is None or not x.grad.any())
    ]
    assert not missing
    # One table cannot take the changes of its two uses.
    model = random_model(3, crf_rank=crf_rank)
    adapted = lora_model(model, sorted(names - {"shared", "embed_tokens", "lm_head"})).eval()
    translations = everything(adapted.get_base_model())
    merged = everything(adapted.merge_and_unload())
    assert torch.equal(merged["sequences"], translations["sequences"])
    torch.testing.assert_close(merged["logits"], translations["logits"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(merged["loss"], translations["loss"], rtol=1e-3, atol=1e-3)


def test_dynamic_quantisation():
    model = random_model(3)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    left = [name for name, module in quantised.named_modules() if type(module) is nn.Linear]
    assert not left
    expected, actual = everything(model), everything(quantised)
    assert (actual["length_logits"] - expected["length_logits"])[:, 1:].abs().max() < 0.5
    assert (actual["loss"] - expected["loss"]).abs() < 0.3
    suppressed = list(range(3, model.config.vocab_size - 4))  # the other tokens alone may be predicted
    input_ids, attention_mask = pad(random_sources(model, 5))
    sequences = quantised.generate(input_ids, attention_mask=attention_mask, suppress_tokens=suppressed)
    assert not set(sequences.flatten().tolist()) & set(suppressed)
