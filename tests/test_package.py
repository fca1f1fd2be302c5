"""What importing the package loads, and that the auto classes know JM-NAT in whatever order both are imported."""

import subprocess
import sys

import pytest

import modeling_jmnat
from tests.helpers.translation_samples import save_translators

AUTO = "from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline"
CONFIG_ALONE = """
from transformers import AutoConfig
config = AutoConfig.from_pretrained(folder)
print(type(config).__module__)
"""
TOKENIZER_ALONE = """
from transformers import AutoTokenizer
os.remove(folder + "/config.json")
print(type(AutoTokenizer.from_pretrained(folder)).__module__)
"""
EVERYTHING = f"""
{AUTO}
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
translate = pipeline("nat-translation", model=folder)
assert translate("ein haus")[0]["translation_text"] is not None
assert type(pipeline("translation", model=folder)) is type(translate)
tokenizer = AutoTokenizer.from_pretrained(folder)
for thing in (model.config, model, AutoModel.from_config(model.config), tokenizer, translate):
    print(type(thing).__module__)
"""
THREADS = f"""
import threading
def load():
{AUTO}
    import modeling_jmnat
    found.append(type(AutoModelForSeq2SeqLM.from_pretrained(folder)).__module__)
    found.append(type(AutoTokenizer.from_pretrained(folder)).__module__)
found = []
threads = [threading.Thread(target=load) for _ in range(4)]
threads += [threading.Thread(target=__import__, args=(name,)) for name in (
    "modeling_jmnat.modeling_jmnat", "modeling_jmnat.pipeline", "transformers.trainer", "modeling_jmnat")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*found, sep="\\n")
""".replace(f"\n{AUTO}", f"\n    {AUTO}")
SPAWNED = """
import multiprocessing
from modeling_jmnat import JMNatForConditionalGeneration
model = JMNatForConditionalGeneration.from_pretrained(folder)
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(type(pool.apply(copy.deepcopy, (model,))).__module__)
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_translators(tmp_path_factory.mktemp("models")) / "student"


def fresh_process(code: str, *arguments) -> list[str]:
    """The lines that `code` prints in a new process."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def loaded_by(code: str) -> set[str]:
    return set(fresh_process(f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"))


def test_importing_the_package_loads_no_heavy_library():
    loaded = loaded_by("import modeling_jmnat\nmodeling_jmnat.__version__, dir(modeling_jmnat)")
    ours = {name for name in loaded if name.startswith("modeling_jmnat")}
    assert ours == {"modeling_jmnat", "modeling_jmnat.utils", "modeling_jmnat.utils.imports"}
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & {"torch", "transformers", "numpy", "accelerate", "datasets", "onnx", "onnxruntime"}


def test_translating_loads_no_other_rooms():
    names = "JMNatConfig, JMNatForConditionalGeneration, JMNatTokenizer, JMNatTranslationPipeline"
    loaded = loaded_by(f"from modeling_jmnat import {names}")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("modeling_jmnat.")}
    assert not rooms & {"data", "inference", "training", "teacher", "onnx_export", "evaluation", "commands"}
    assert not {"datasets", "onnx", "onnxruntime", "ctranslate2"} & loaded


def test_public_names_are_classes_of_the_package():
    assert sorted(modeling_jmnat.__all__) == modeling_jmnat.__all__
    for name in modeling_jmnat.__all__:
        assert getattr(modeling_jmnat, name).__name__ == name
        assert name in dir(modeling_jmnat)
    with pytest.raises(AttributeError, match="module 'modeling_jmnat' has no attribute 'JMNat'"):
        _ = modeling_jmnat.JMNat


@pytest.mark.parametrize(
    ("first", "use"),
    [
        ("import modeling_jmnat", CONFIG_ALONE),
        ("import modeling_jmnat", TOKENIZER_ALONE),
        ("import modeling_jmnat", EVERYTHING),
        (f"{AUTO}\nimport modeling_jmnat", EVERYTHING),
        ("import modeling_jmnat.pipeline\nfrom transformers import Seq2SeqTrainer", EVERYTHING),
        ("import transformers.modeling_layers\nfrom modeling_jmnat import JMNatConfig", EVERYTHING),
        ("", THREADS),
    ],
)
def test_the_auto_classes_know_the_model(student, tmp_path, first, use):
    folder = tmp_path / "student"
    folder.mkdir()
    for path in student.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    found = fresh_process(f"import os, sys\nfolder = sys.argv[1]\n{first}\n{use}", folder)
    assert found
    assert all(module.startswith("modeling_jmnat.") for module in found), found


def test_models_can_be_sent_to_other_processes(student, tmp_path):
    (tmp_path / "program.py").write_text(f"import copy\nfolder = {str(student)!r}\n{SPAWNED}")
    command = [sys.executable, str(tmp_path / "program.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.stdout == "modeling_jmnat.modeling_jmnat\n", run.stderr
