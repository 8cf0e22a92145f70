"""The recipes: each parses strictly, states what the original's paper and scripts state, and its commands are real."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from transformers import CLIPVisionConfig, LlamaConfig

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from recipes import train as training
from recipes.build import parser as build_parser
from tests.test_readme import ROOT, command_problems, page_problems


RECIPES = ROOT / "recipes"
LAUNCHERS = sorted((RECIPES / "accelerate").glob("*.yaml"))
# Of trainings; what `llava reproduce` reads is in test_reproduce.py.
PATHS = [path for path in sorted(RECIPES.rglob("*.yaml")) if path not in LAUNCHERS and path.name != "tables.yaml"]
NAMES = [str(path.relative_to(RECIPES).with_suffix("")) for path in PATHS]
FULL_SIZE = [name for name in NAMES if name.startswith("llava-")]
VARIANTS = ("pretrain", "finetune", "finetune_lora", "finetune_qlora", "task_lora")
# So that a machine without a GPU takes them.
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]

STAGE_1 = {"stage": "pretrain", "num_train_epochs": 1}
STAGE_2 = {"stage": "finetune", "num_train_epochs": 1, "learning_rate": 2e-5}
LORA = {"lora_r": 128, "lora_alpha": 256, "lora_dropout": 0.05, "learning_rate": 2e-4, "projector_lr": 2e-5}
# What the paper (v1) and the original's scripts (v1.5) fix.
FIXED = {
    "llava-v1-7b/pretrain": STAGE_1 | {"learning_rate": 2e-3},
    "llava-v1-7b/finetune": STAGE_2 | {"num_train_epochs": 3},
    "llava-v1-7b/scienceqa": STAGE_2 | {"num_train_epochs": 12},
}
for folder in ("llava-v1.5-7b", "llava-v1.5-13b", "llava-qwen3-0.6b"):
    FIXED[f"{folder}/pretrain"] = STAGE_1 | {"learning_rate": 1e-3}
    FIXED[f"{folder}/finetune"] = STAGE_2
for folder in ("llava-v1.5-7b", "llava-v1.5-13b"):
    FIXED |= {f"{folder}/{name}": STAGE_2 | LORA for name in ("finetune_lora", "finetune_qlora", "task_lora")}
EVERYWHERE = {"weight_decay": 0, "warmup_steps": 0.03, "lr_scheduler_type": "cosine", "max_grad_norm": 1}
EVERYWHERE |= {"bf16": True, "tf32": True, "optim": "adamw_torch_fused", "packing": True}

# Samples of a step, and tokens of one in a row: image, text, and what it shares (facts in the headers).
SAMPLES = {
    "llava-v1-7b/pretrain": (128, 256 + 16),
    "llava-v1-7b/finetune": (32, 415),
    "llava-v1-7b/scienceqa": (32, 480),
    "llava-qwen3-0.6b/pretrain": (256, 729 + 16),
    "llava-qwen3-0.6b/finetune": (128, 656),
}
for folder in ("llava-v1.5-7b", "llava-v1.5-13b"):
    SAMPLES[f"{folder}/pretrain"] = (256, 576 + 16)
    SAMPLES |= {f"{folder}/{name}": (128, 578) for name in VARIANTS[1:]}


def values(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def header(path: Path) -> str:
    """The comment that a file begins with."""
    return re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]


def commands(path: Path) -> list[str]:
    """Lines of shell under `command:`, continued ones joined."""
    block = re.search(r"^# command:\n((?:#   .*\n)+)", header(path), re.M)[1]
    return re.sub(r"^# +", "", block, flags=re.M).replace("\\\n", " ").splitlines()


def build_options(name: str) -> dict:
    line = commands(RECIPES / f"{name}.yaml")[0]
    return vars(build_parser().parse_args(shlex.split(line)[2:]))


def header_problems(text: str) -> list[str]:
    parts = ("command", "hardware", "time", "expected", "data")
    problems = [f"no line `{part}:`" for part in parts if not re.search(rf"^# {part}:", text, re.M)]
    return problems + [f"{len(line)} characters" for line in text.splitlines() if len(line) > 119]


def test_the_folders_hold_what_they_should():
    assert set(FULL_SIZE) == set(FIXED) == set(SAMPLES)
    assert [path.stem for path in LAUNCHERS] == ["ddp", "fsdp2", "zero2", "zero3"]


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_recipe_parses_strictly(path):
    config, model_config = training.parser().parse_args_and_config(["--config", str(path), *ON_CPU])
    assert config.stage in ("pretrain", "finetune")
    assert config.output_dir == f"outputs/{path.parent.name}/{path.stem}" or path.parent.name == "micro"
    assert config.output_dir != model_config.model_name_or_path
    assert all(isinstance(name, str) for name in config.data)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_recipe_has_four_blocks(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^# (model|data|training|output)$", text, re.M)
    assert found == ["model", "data", "training", "output"]
    # What PyYAML reads as text, and a key given twice, of which it would take the last.
    assert not re.search(r": \d+e-?\d+$", text, re.M)
    keys = re.findall(r"^(\w+):", text, re.M)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_header_says_how_where_and_what_to_expect(path):
    assert header_problems(header(path)) == []
    found = commands(path)
    assert [problem for line in found for problem in command_problems(line, ROOT)] == []
    assert all(re.match(r"llava |accelerate launch ", line) for line in found)
    assert found[-1].split()[-1] == str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("# A\n#\n# command:\n# hardware: x\n# time: x\n# data: x\n", "no line `expected:`"),
        (f"# command:\n# hardware: x\n# time: x\n# expected: x\n# data: {'x' * 120}\n", "128 characters"),
    ],
)
def test_a_poor_header_is_found(text, problem):
    assert header_problems(text) == [problem]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_recipe_states_the_originals_numbers(name):
    given = values(name)
    wanted = EVERYWHERE | FIXED[name]
    assert {key: given.get(key) for key in wanted} == wanted
    assert ("lora_r" in given) == given.get("use_peft", False) == ("lora" in name)
    assert ("projector_lr" in given) == ("lora" in name)
    assert given.get("load_in_4bit", False) == ("qlora" in name)
    if "qlora" in name:
        assert (given["bnb_4bit_quant_type"], given["use_bnb_nested_quant"]) == ("nf4", True)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_step_holds_about_the_originals_samples(name):
    given, (wanted, tokens) = values(name), SAMPLES[name]
    gpus = 1 if "qwen3" in name else 8
    rows = gpus * given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    # Captions are all about as long, so whole ones are counted; trees of many lengths fill rows to about 96%.
    held = given["max_length"] // tokens if given["stage"] == "pretrain" else 0.96 * given["max_length"] / tokens
    assert held * rows == pytest.approx(wanted, rel=0.05)
    text = re.sub(r"\s*\n#\s*", " ", header(RECIPES / f"{name}.yaml"))
    assert f"{wanted} samples" in text
    assert f"{given['max_length']:,} tokens" in text


@pytest.mark.parametrize("name", [name for name in FULL_SIZE if "task" not in name])
def test_a_recipe_starts_from_what_its_command_builds(name):
    given, built = values(name), build_options(name)
    assert given["model_name_or_path"] == str(built["out"])
    first, is_v1 = name.split("/")[0], "v1-" in name
    assert built["projector"] == ("linear" if is_v1 else "mlp")
    assert built["vision_feature_layer"] == -2
    stage_1 = given["stage"] == "pretrain"
    assert built["aspect"] == ("square" if stage_1 or is_v1 else "pad")
    assert built["template"] == ("plain" if stage_1 else "chatml" if "qwen3" in name else "vicuna_v1")
    towers = {"llava-v1-7b": "clip-vit-large-patch14", "llava-qwen3-0.6b": "siglip2-so400m-patch14-384"}
    assert built["vision"].split("/")[1] == towers.get(first, "clip-vit-large-patch14-336")
    if not stage_1:
        assert given["projector"] == values(f"{first}/pretrain")["output_dir"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_what_learns_is_in_float32(name):
    # Adam's weights: under DDP and on one GPU nobody else keeps a copy of them in full precision.
    given = values(name)
    most_is_frozen = given["stage"] == "pretrain" or given.get("use_peft", False)
    assert given["dtype"] == ("bfloat16" if most_is_frozen and "qwen3" not in name else "float32")
    full_7b = not most_is_frozen and "qwen3" not in name
    assert ("fsdp2.yaml" in commands(RECIPES / f"{name}.yaml")[-1]) == full_7b


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_accelerate_reads_a_launcher(path):
    config = load_config_from_file(str(path))  # unknown keys are an error
    kinds = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP}
    assert config.distributed_type is kinds.get(path.stem, DistributedType.DEEPSPEED)
    assert (config.mixed_precision, config.num_processes, config.num_machines) == ("bf16", 8, 1)
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    # Inside these two, accelerate's launcher drops what it does not know.
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options
    # The header's example, with a recipe for FILE.
    line = next(line for line in header(path).splitlines() if "accelerate launch" in line).lstrip("# ")
    assert command_problems(line.replace("FILE", "recipes/micro/finetune.yaml"), ROOT) == []


def test_fsdp2_wraps_a_class_that_the_model_has():
    config = load_config_from_file(str(RECIPES / "accelerate/fsdp2.yaml")).fsdp_config
    assert (config["fsdp_version"], config["fsdp_auto_wrap_policy"]) == (2, "TRANSFORMER_BASED_WRAP")
    # With another type the end of a run would leave no checkpoint that transformers loads.
    assert config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = CLIPVisionConfig(**small, image_size=8, patch_size=4)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**small, vocab_size=8), image_token_index=1)
    )
    assert config["fsdp_transformer_layer_cls_to_wrap"] in {type(module).__name__ for module in model.modules()}


def test_the_page_is_true():
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert page_problems(text) == []
    assert len(text.splitlines()) <= 80
    table = dict(re.findall(r"^\| `([^`]+)`[^|]*\| `([^`]+)`", text, re.M))
    for name in FULL_SIZE:
        if "qwen3" not in name:
            assert f"accelerate/{table[name]}.yaml" in commands(RECIPES / f"{name}.yaml")[-1]
    # Scores on the page are those of the headers.
    for row in re.findall(r"^\| `(llava-v1\.5[^`]+)`.*?\|([^|]+)\|$", text, re.M):
        for score in filter(None, row[1].strip().split(", ")):
            assert score in header(RECIPES / f"{row[0]}.yaml")
