"""Training in miniature: which parameters move in which stage, what comes out, and what bad data is told."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration as Stock

from benchmarks import shapes
from processing import LlavaProcessor
from processing.collator import PaddedCollator
from recipes import data, merge
from recipes import train as training
from recipes.training.train_data import load_rows, load_stream
from tests import tiny_text


RECIPES = Path(training.__file__).parent / "micro"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with pictures, captions and questions."""
    monkeypatch.chdir(tmp_path)
    folder = Path("work")
    shapes.write_data(folder, num_images=12, seed=0)
    return folder


def words_for(stage: str, *overrides: str) -> list[str]:
    """The recipe of the quickstart, with the files of these tests."""
    start, data, out = {
        "pretrain": ("start", "captions.jsonl", "stage1"),
        "finetune": ("stage1", "questions.jsonl", "stage2"),
    }[stage]
    files = ["--model_name_or_path", f"work/{start}", "--data", f"work/{data}", "--image_root", "work/images"]
    files += ["--output_dir", f"work/{out}", "--max_steps", "2", "--logging_steps", "1"]
    return ["--config", str(RECIPES / f"{stage}.yaml"), *files, *overrides]


def run(stage: str, *overrides: str) -> dict[str, torch.Tensor]:
    training.main(words_for(stage, *overrides))
    return load_file(f"work/{'stage1' if stage == 'pretrain' else 'stage2'}/model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_each_stage_moves_exactly_its_parameters(workplace, capsys, projector):
    tiny_text.checkpoint(workplace / "start", projector=projector)
    start = load_file(workplace / "start/model.safetensors")
    projector_names = {name for name in start if name.startswith("multi_modal_projector")}
    if projector == "linear":
        projector_names = {name for name in projector_names if "linear_1" in name}

    first = run("pretrain")
    assert moved(start, first) == projector_names
    assert "multi_modal_projector" in capsys.readouterr().out
    second = run("finetune")
    assert moved(first, second) == projector_names | {name for name in start if name.startswith("language_model")}

    facts = json.loads((workplace / "stage2/training.json").read_text())
    assert [entry["step"] for entry in facts["log"] if "loss" in entry] == [1, 2]
    assert {row["module"] for row in facts["trainable"] if row["trained"]} == {
        "multi_modal_projector",
        "language_model",
        "lm_head",
    }
    assert facts["data"]["sources"][0]["rows"] == 12
    LlavaProcessor.from_pretrained(workplace / "stage2")
    _, info = Stock.from_pretrained(workplace / "stage2", output_loading_info=True)
    assert not any(info.values())


def test_the_collator_pads_what_encode_gives(workplace):
    processor = tiny_text.processor()
    rows = load_rows(f"{workplace}/captions.jsonl", f"{workplace}/images").select(range(3))
    text_only = {"id": "t", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]}
    rows = [*rows, text_only]
    batch = PaddedCollator(processor)(rows)
    for i, row in enumerate(rows):
        one = processor.encode(row["messages"], row.get("images"), for_training=True)
        length = one["input_ids"].shape[1]
        for key, fill in (("input_ids", processor.tokenizer.pad_token_id), ("labels", -100), ("attention_mask", 0)):
            assert torch.equal(batch[key][i, :length], one[key][0])
            assert (batch[key][i, length:] == fill).all()
    assert batch["pixel_values"].shape[0] == 3


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}`, which is no file"):
        load_rows(str(tmp_path / name))


def test_unreadable_data_is_told(workplace):
    def refused(words, text):
        Path("rows.jsonl").write_text(text)
        with pytest.raises(ValueError, match=words):
            load_rows("rows.jsonl", f"{workplace}/images")

    refused("`rows.jsonl` is empty", "")
    refused("`rows.jsonl` cannot be read: JSON parse error", "{bad")
    refused("`rows.jsonl` cannot be read", "\n\n")
    Path("rows.jsonl").write_bytes(b'{"id": "1"}\n{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="`rows.jsonl`, line 2: .* Save the file as UTF-8"):
        load_rows("rows.jsonl")
    Path("rows.parquet").write_text("PAR1 and no more")
    with pytest.raises(ValueError, match="`rows.parquet` cannot be read: Parquet magic bytes"):
        load_rows("rows.parquet")
    Path("rows.jsonl").write_text("{bad")
    with pytest.raises(ValueError, match="`rows.jsonl` cannot be read: JSON parse error"):
        load_stream("rows.jsonl")
    row = {"id": "1", "messages": [{"role": "user", "content": "Q"}], "images": ["none.png"]}
    refused("1 of the 1 pictures of `rows.jsonl` do not exist, such as .*none.png", json.dumps(row))
    lines = (workplace / "captions.jsonl").read_text().splitlines()[:1] + [json.dumps({**row, "images": None})]
    Path("rows.jsonl").write_text("\n".join(lines))
    assert load_rows("rows.jsonl", f"{workplace}/images")[1]["images"] == []


def test_the_starting_checkpoint_is_not_overwritten(workplace):
    tiny_text.checkpoint(workplace / "start")
    with pytest.raises(ValueError, match="the checkpoint to start from"):
        run("pretrain", "--output_dir", "work/start")


def test_rows_without_messages_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"conversations": []}\n')
    with pytest.raises(ValueError, match="has the columns conversations; wanted rows with `messages`"):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_a_broken_sample_is_named(workplace):
    tiny_text.checkpoint(workplace / "start")
    lines = (workplace / "captions.jsonl").read_text().splitlines()
    row = json.loads(lines[3])
    row["messages"][1]["content"][0]["text"] = " "
    lines[3] = json.dumps(row)
    (workplace / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="Message 1 of conversation `caption-3` is an empty answer"):
        run("pretrain")


def test_a_misspelt_key_is_an_error(workplace):
    text = (RECIPES / "pretrain.yaml").read_text().replace("learning_rate", "learning_rat")
    Path("bad.yaml").write_text(text)
    with pytest.raises(ValueError, match="learning_rat"):
        training.parser().parse_args_and_config(["--config", "bad.yaml"])


def test_stage_2_takes_the_projector_of_another_run(workplace):
    tiny_text.checkpoint(workplace / "start", projector="linear")
    first = run("pretrain")
    tiny_text.checkpoint(workplace / "other", projector="linear")
    rates = ["--learning_rate", "0.0", "--projector_lr", "0.0"]
    sources = ["--model_name_or_path", "work/other", "--projector", "work/stage1"]
    second = run("finetune", *rates, *sources)
    for name in first:
        if name.startswith("multi_modal_projector"):
            assert torch.equal(first[name], second[name])


def test_a_lora_is_merged_into_a_checkpoint_for_stock(workplace):
    _, processor = tiny_text.checkpoint(workplace / "stage1", projector="linear")
    training.main(words_for("finetune", "--use_peft", "true", "--lora_r", "4"))
    adapter = workplace / "stage2"
    trained = {name.split(".")[-4] for name in load_file(adapter / "adapter_model.safetensors") if "lora_A" in name}
    assert trained == {"self_attn", "mlp"}
    merge.main(["--adapter", str(adapter), "--out", "merged"])

    base = Stock.from_pretrained(workplace / "stage1").eval()
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    merged = Stock.from_pretrained("merged").eval()
    rows = load_rows(f"{workplace}/questions.jsonl", f"{workplace}/images")
    inputs = processor.encode(rows[0]["messages"][:1], rows[0]["images"])
    with torch.no_grad():
        expected = adapted(**inputs).logits
        assert torch.allclose(merged(**inputs).logits, expected, atol=1e-5)
        assert not torch.allclose(Stock.from_pretrained(workplace / "stage1")(**inputs).logits, expected, atol=1e-5)


def test_data_check_counts_what_cannot_be_used(workplace, capsys):
    tiny_text.checkpoint(workplace / "start")
    command = ["check", f"{workplace}/captions.jsonl", "--model", f"{workplace}/start"]
    command += ["--image-root", f"{workplace}/images"]
    data.main(command)
    assert "12 usable rows" in capsys.readouterr().out

    lines = (workplace / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[3]["messages"][1]["content"][0]["text"] = " "
    (workplace / "images" / rows[5]["images"][0]).write_bytes(b"no picture")
    (workplace / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="2 rows of .* cannot be used"):
        data.main(command)
    report = capsys.readouterr().out
    assert "`caption-3`" in report and "`caption-5`" in report and "10 usable rows" in report
