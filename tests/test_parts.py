"""Checkpoints that are not whole: what `answer`, `train`, `merge`, `data check` and `scienceqa` say of them."""

import json
import subprocess
import sys

import httpx2
import pytest
import torch
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import data, reproduce
from recipes.building.hub import check_reachable
from recipes.building.original_files import locate
from recipes.building.parts import load_llava, load_processor, load_tokenizer, load_vision_tower
from recipes.measuring.answer_local import load
from recipes.merge import merge
from recipes.quickstart import TINY, Quickstart
from recipes.training.train_data import load_rows
from tests.copies import spoilt as spoilt
from tests.copies import whole as whole


LOCKED = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"


def change_weights(folder, name, value) -> None:
    weights = load_file(folder / "model.safetensors")
    found = next(key for key in weights if name in key)
    before = weights.pop(found)
    if value is not None:
        weights[found] = value(before)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def spoil_one(number):
    def spoil(weight):
        weight[1, 1] = float(number)
        return weight

    return spoil


def lose_a_shard(folder) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SPOILT = {
    "lacks 1 of its weights, such as `lm_head.weight`. Give a complete": lambda f: change_weights(f, "lm_head", None),
    r"`.*down_proj.weight` in the shape \(3, 64\), and its config.json wants \(32, 64\)": lambda f: change_weights(
        f, "down_proj", lambda weight: weight[:3].clone()
    ),
    "A weight file of .* cannot be read: .* cut off or damaged": lambda f: cut(f / "model.safetensors"),
    "cannot be loaded: .*model-00001-of-00001.safetensors.* Copy, download": lose_a_shard,
    "cannot be loaded: .*no file named model.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "has nan in its weight `lm_head.weight`, wanted numbers": lambda f: change_weights(f, "lm_head", spoil_one("nan")),
    "has -inf in its weight `.*down_proj.weight`": lambda f: change_weights(f, "down_proj", spoil_one("-inf")),
    "has no config.json": lambda f: (f / "config.json").unlink(),
    "config.json` is no JSON in UTF-8": lambda f: cut(f / "config.json"),
    "config.json` holds a list, wanted an object": lambda f: (f / "config.json").write_text("[]"),
}


@pytest.mark.parametrize("words", SPOILT)
def test_a_checkpoint_that_is_not_whole_is_told(spoilt, words):
    SPOILT[words](spoilt)
    with pytest.raises(ValueError, match=words):
        load_llava(str(spoilt))


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("chat_template.jinja", lambda path: path.write_text("{% for x %}")),
        ("chat_template.jinja", lambda path: path.unlink()),
        ("tokenizer.json", cut),
        ("tokenizer.json", lambda path: path.write_text("{}")),
        ("tokenizer.json", lambda path: path.unlink()),
        ("tokenizer_config.json", lambda path: path.unlink()),
        ("processor_config.json", lambda path: path.unlink()),
        ("processor_config.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_processor_that_is_not_whole_is_told(spoilt, name, spoil):
    spoil(spoilt / name)
    with pytest.raises(ValueError, match=f"The processor of `{spoilt}` cannot be used: .*. Wanted are processor_co"):
        load_processor(str(spoilt))


def test_a_path_that_leads_nowhere_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for name in (f"{tmp_path}/none", f"{tmp_path}/link", "./none", "~/none"):
        for read in (load_llava, load_processor):
            with pytest.raises(FileNotFoundError, match=f"`{name}` is no directory. Check the path"):
                read(name)
    with pytest.raises(ValueError, match="`nobody/none` is no folder here, and was not found on the Hub"):
        load_llava("nobody/none")


def test_without_network_a_name_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    tried = []

    def no_network(request):
        tried.append(request.method)
        raise httpx2.ConnectError("Name or service not known")

    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(no_network)))
    try:
        for read in (load_llava, load_processor, load_vision_tower, load_tokenizer, locate, load_rows):
            with pytest.raises(FileNotFoundError, match="`models/mine` is no file or folder here, and the Hub cannot"):
                read("models/mine")
            assert [tried.pop(), tried] == ["HEAD", []]
        (tmp_path / "cache/models--models--mine").mkdir(parents=True)
        check_reachable("models/mine")
        assert not tried
    finally:
        set_client_factory(default_client_factory)


def test_an_adapter_that_is_not_whole_is_told(whole, tmp_path):
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    get_peft_model(LlavaForConditionalGeneration.from_pretrained(whole), lora).save_pretrained(tmp_path / "a")
    LlavaProcessor.from_pretrained(whole).save_pretrained(tmp_path / "a")
    file = tmp_path / "a/adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file(weights | {first: torch.full_like(weights[first], float("inf"))}, file)
    with pytest.raises(ValueError, match=f"`{tmp_path / 'a'}` has (nan|-?inf) in its weight `.*q_proj.weight`"):
        merge(tmp_path / "a")
    weights.pop(first)
    save_file(weights, file)
    with pytest.raises(ValueError, match="does not load over .*: Found missing adapter keys"):
        load(str(tmp_path / "a"), "auto")
    cut(file)
    with pytest.raises(ValueError, match="does not load over .*: Error while deserializing header"):
        merge(tmp_path / "a")
    with pytest.raises(ValueError, match="The base of .*: `/gone` is no directory. .* `llava merge --base` names"):
        merge(tmp_path / "a", "/gone")


def test_data_check_names_the_checkpoint(spoilt, tmp_path):
    (spoilt / "chat_template.jinja").write_text("{% for x %}")
    with pytest.raises(ValueError, match="The processor of"):
        data.main(["check", "rows.jsonl", "--model", str(spoilt)])


def test_what_is_whole_is_loaded(whole):
    model, processor = load(str(whole), "auto")
    assert torch.isfinite(model.lm_head.weight).all() and processor.chat_template


@pytest.mark.parametrize(
    "run",
    [
        lambda folder: Quickstart(folder, TINY, 0).run(),
        lambda folder: reproduce.main(["--out", str(folder)]),
    ],
)
def test_a_second_run_into_one_folder_is_refused(tmp_path, run):
    command = [sys.executable, "-c", LOCKED, str(tmp_path / ".running")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="Another run writes into"):
            run(tmp_path)
        other.communicate(b"\n")
    assert [path.name for path in tmp_path.iterdir()] == [".running"]
