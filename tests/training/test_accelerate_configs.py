"""The settings of `accelerate launch` that come with the package, read by accelerate itself."""

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from modeling_jmnat import JMNatTrainingArguments
from modeling_jmnat.training.presets import PRESETS, accelerate_config, preset_names


def parsed(*words):
    """The arguments of `accelerate launch` with its defaults filled in."""
    return _validate_launch_command(launch_command_parser().parse_args([*map(str, words), "train.py"]))[0]


def given(name):
    return parsed("--config_file", accelerate_config(name))


@pytest.mark.parametrize(
    ("name", "kind", "processes", "machines"),
    [
        ("one_gpu", "NO", 1, 1),
        ("gpus", "MULTI_GPU", 8, 1),
        ("fsdp2", "FSDP", 8, 1),
        ("deepspeed_zero2", "DEEPSPEED", 8, 1),
        ("two_machines", "MULTI_GPU", 16, 2),
        ("cpu", "MULTI_GPU", 2, 1),
    ],
)
def test_accelerate_reads_every_config(name, kind, processes, machines):
    assert load_config_from_file(str(accelerate_config(name))).distributed_type == kind
    arguments = given(name)
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    chosen = (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed, arguments.cpu)
    assert chosen == (kind == "MULTI_GPU", kind == "FSDP", kind == "DEEPSPEED", False)


def test_every_config_is_tested_and_none_is_a_recipe():
    names = {"one_gpu", "gpus", "fsdp2", "deepspeed_zero2", "two_machines", "cpu"}
    assert {path.name for path in (PRESETS / "accelerate").iterdir()} == {f"{name}.yaml" for name in names}
    assert names.isdisjoint(preset_names())
    with pytest.raises(ValueError, match="'ddp' is not one of cpu, deepspeed_zero2, fsdp2, gpus, one_gpu, two_mach"):
        accelerate_config("ddp")


def test_settings_of_a_config_reach_accelerate(monkeypatch):
    for name, value in prepare_multi_gpu_env(given("fsdp2")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert given("deepspeed_zero2").zero_stage == 2
    machines = given("two_machines")
    machines.machine_rank = 1
    prepare_multi_gpu_env(machines)
    assert (machines.nnodes, machines.nproc_per_node, machines.node_rank) == ("2", "8", 1)


def test_one_process_instead_of_several_is_refused(monkeypatch, tmp_path):
    def start(*words):
        _, environment = prepare_simple_launcher_cmd_env(parsed(*words))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return JMNatTrainingArguments(str(tmp_path))

    assert start("--cpu", "--num_processes", 1).world_size == 1
    assert start("--cpu", "--num_processes", 1, "--mixed_precision", "bf16").bf16
    with pytest.raises(ValueError, match="started one process where several were asked for: .*torchrun --nproc_per"):
        start("--cpu", "--num_processes", 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    JMNatTrainingArguments(str(tmp_path))
