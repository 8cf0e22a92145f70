"""lmms-eval measures a checkpoint of ours with its class for stock LLaVA, and hears what ours answers.

lmms-eval lives in an environment of its own (docs/benchmarks.md): LMMS_EVAL_PYTHON=/path/bin/python names it.
"""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

from benchmarks.lmms_task.one_bos import copy_with_one_bos
from data_generation.rows import row_features, write_rows
from recipes.measuring.answering import answer
from tests import tiny, tiny_text


PYTHON = os.environ.get("LMMS_EVAL_PYTHON") or (sys.executable if importlib.util.find_spec("lmms_eval") else None)
TASK = Path(__file__).parent.parent / "benchmarks/lmms_task"
COLOURS = ("red", "green", "blue", "black")
QUESTION = "What color is the square?"


def row(number: int, colour: str) -> dict:
    picture, file = Image.new("RGB", (40, 30), "white"), io.BytesIO()
    ImageDraw.Draw(picture).rectangle((5, 5, 20 + number, 20), fill=colour)
    picture.save(file, "PNG")
    empty = dict.fromkeys(row_features(embedded=True))
    return empty | {
        "id": str(number),
        "images": [{"bytes": file.getvalue(), "path": None}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": colour}]},
        ],
    }


def test_the_copy_leaves_bos_to_the_template(tmp_path):
    _, processor = tiny_text.checkpoint(tmp_path / "checkpoint", template="vicuna_v1", projector="mlp")
    copy_with_one_bos(tmp_path / "checkpoint", tmp_path / "copy")
    begins = [
        AutoTokenizer.from_pretrained(tmp_path / name)("<s>What").input_ids[:2] for name in ("checkpoint", "copy")
    ]
    bos = processor.tokenizer.bos_token_id
    assert begins[0] == [bos, bos]
    assert begins[1][0] == bos != begins[1][1]
    assert (tmp_path / "copy/model.safetensors").samefile(tmp_path / "checkpoint/model.safetensors")
    with pytest.raises(ValueError, match="adds no tokens"):
        copy_with_one_bos(tmp_path / "copy", tmp_path / "again")


@pytest.mark.slow
@pytest.mark.skipif(
    PYTHON is None, reason="lmms-eval is not installed here, and LMMS_EVAL_PYTHON names no other python"
)
@pytest.mark.parametrize("mode", [[], ["--force_simple"]], ids=["chat", "simple"])
def test_lmms_eval_hears_the_same_answers(tmp_path, mode):
    model, processor = tiny_text.checkpoint(tmp_path / "checkpoint", template="vicuna_v1", projector="mlp")
    tiny.randomize(model).eval().save_pretrained(tmp_path / "checkpoint")  # answers depend on the picture
    copy_with_one_bos(tmp_path / "checkpoint", tmp_path / "copy")
    write_rows((row(n, c) for n, c in enumerate(COLOURS)), tmp_path / "held_out.parquet", row_features(embedded=True))
    shutil.copytree(TASK, tmp_path / "tasks")

    options = "--model llava_hf --batch_size 1 --include_path tasks --tasks held_out --output_path results"
    options += " --log_samples --model_args pretrained=copy,device=cpu,device_map=cpu,dtype=float32"
    command = [PYTHON, "-m", "lmms_eval", *options.split(), *mode]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # What fails while it generates is a line in its log and an empty answer, not an exit status.
    assert "in generating" not in done.stderr

    [samples] = tmp_path.glob("results/*/*samples_held_out.jsonl")
    heard = {line["doc_id"]: line["filtered_resps"] for line in map(json.loads, samples.read_text().splitlines())}
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "held_out.parquet"), split="train")
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}] for _ in rows]
    ours = answer(model, processor, chats, [one["images"] for one in rows], max_new_tokens=16)
    assert [heard[number].strip() for number in range(len(ours))] == ours
    assert len(set(ours)) > 1
    [results] = tmp_path.glob("results/*/*_results.json")
    assert json.loads(results.read_text())["results"]["held_out"]["exact,none"] == 0
