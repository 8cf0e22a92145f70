"""What people get wrong around training, and what happens to the machine meanwhile: a sentence, or no harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors import SafetensorError
from torch._utils import ExceptionWrapper

from processing.images import ImageError
from processing.rows import encode_rows, reason_of
from recipes import cli
from recipes import train as recipe
from recipes.run_folder import LOCK, alone_in
from recipes.training.checkpoints import complete_checkpoints
from recipes.training.train_data import load_mixture, load_rows
from recipes.training.trainer import LlavaTrainer
from tests import tiny_text, training
from tests.conversations import assistant, sample, user


SAVING = {"save_strategy": "steps", "save_steps": 1}
STREAM = {"streaming": True, "max_steps": 2, "stream_buffer": 6}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data_and_start(tmp_path)
    return tmp_path


def parse(folder: Path, *flags: str, **changes) -> tuple:
    path = training.write_yaml(folder / "run.yaml", **changes)
    return recipe.parser().parse_args_and_config(["--config", str(path), *flags])


def rewrite(path: str, change) -> list[dict]:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    change(rows)
    Path(path).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return rows


# Values of a YAML.


def test_paths_of_a_yaml_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    names = ("data", "eval_data", "image_root", "projector", "cache_image_features", "output_dir")
    config, model_config = parse(tmp_path, **{name: f"~/{name}" for name in (*names, "model_name_or_path")})
    found = [getattr(config, name) for name in names]
    assert found == [["/home/ada/data"], ["/home/ada/eval_data"], *(f"/home/ada/{name}" for name in names[2:])]
    with pytest.raises(FileNotFoundError, match="`/home/ada/model_name_or_path` is no directory"):
        recipe.train(config, model_config)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stage": "pretrian"}, "`stage` is 'pretrian', wanted one of `pretrain`, `finetune`"),
        ({"stage": None}, "`stage` is missing"),
        ({"attention": "fast"}, "`attention` is 'fast', wanted one of `auto`, `segments`"),
        ({"data": []}, "`data` is missing"),
        ({"data": [1]}, r"`data` is \[1\], wanted a list of data sets"),
        ({"eval_data": {"a": 1}}, "`eval_data` is {'a': 1}, wanted a list of data sets"),
        (
            {"per_device_train_batch_size": 0},
            "`per_device_train_batch_size` is 0, wanted a whole number of at least 1",
        ),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0, wanted a whole number"),
        ({"stream_buffer": 0}, "`stream_buffer` is 0, wanted"),
        ({"max_images_per_row": 0}, "`max_images_per_row` is 0, wanted"),
        ({"max_length": -5}, "`max_length` is -5, wanted"),
        ({"max_length": 320.5}, "`max_length` is 320.5, wanted a whole number"),
        ({"max_conversation_length": -1}, "`max_conversation_length` is -1, wanted"),
        ({"max_steps": 0}, "`max_steps` is 0, wanted a whole number of at least 1 "),
        ({"num_train_epochs": 0}, "`num_train_epochs` is 0, wanted a number above 0"),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0, wanted a number of at least 0"),
        ({"projector_lr": float("nan")}, "`projector_lr` is nan, wanted"),
        ({"data_weights": [1.0, 2.0]}, "`data_weights` has 2 numbers for 1 data sets"),
        ({"data_weights": [float("nan")]}, "`data_weights` has nan, wanted numbers above 0"),
        ({"data_weights": [0]}, "`data_weights` has 0, wanted numbers above 0"),
        ({"data_weights": [-1]}, "`data_weights` has -1, wanted numbers above 0"),
        ({"data_weights": 2}, "`data_weights` has 2 for 1 data sets"),
        ({"data_rows": [0.5]}, "`data_rows` is 0.5, wanted a whole number"),
        ({"data_rows": [5], "data_weights": [1]}, "`data_weights` and `data_rows` say the same thing"),
        ({**STREAM, "data_rows": [5]}, "`data_rows` goes without `streaming`"),
        ({**STREAM, "save_strategy": "epoch"}, "`save_strategy: epoch` goes without `streaming`"),
        ({"packing": False, "max_length": None, "eval_data": ["data.jsonl"]}, "`eval_data` is laid out in rows"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        parse(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_the_package_of_a_report_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.training.train_checks.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="`report_to` is `wandb`, which is not installed. `pip install wandb`"):
        parse(tmp_path, report_to="wandb")


def test_one_data_set_needs_no_list(tmp_path):
    config, _ = parse(tmp_path, data="data.jsonl", eval_data="other.jsonl")
    assert (config.data, config.eval_data) == (["data.jsonl"], ["other.jsonl"])


def test_weights_are_weights_also_where_they_are_whole(workplace):
    training.write_data(workplace / "text.jsonl", trees=0, text_only=4)
    data = {"data": ["data.jsonl", "text.jsonl"]}
    for changes, wanted in (({"data_weights": [1, 2]}, (12, 8)), ({"data_rows": [3, 5]}, (3, 5))):
        config, _ = parse(workplace, **data, **changes)
        _, facts = load_mixture(config.data, config.data_rows or config.data_weights, None, 0, True)
        assert tuple(fact["rows_in_mixture"] for fact in facts) == wanted
    config, _ = parse(workplace, "--data_weights", "1", "2", **data)
    assert config.data_weights == [1.0, 2.0] and all(isinstance(weight, float) for weight in config.data_weights)


@pytest.mark.parametrize("attention", ["varlen", "flex"])
def test_attention_of_a_gpu_is_refused_on_a_cpu(workplace, attention):
    with pytest.raises(ValueError, match=f"`attention: {attention}` needs a GPU"):
        training.run(workplace, attention=attention)


# The model to start from.


def test_an_adapter_is_no_model_to_start_from(workplace):
    Path("start/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="a LoRA adapter and no model: .* `llava merge --adapter start --out DIR`"):
        training.run(workplace)


@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["v_proj"], ["self_attn.q_proj", "up_proj"]])
def test_lora_on_chosen_layers_leaves_the_tower_alone(workplace, names):
    trainer = training.run(workplace, use_peft=True, lora_r=2, lora_target_modules=names, max_steps=1)
    adapted = {name for name, p in trainer.model.named_parameters() if "lora_" in name and p.requires_grad}
    assert {any(f".{wanted}." in name for name in adapted) for wanted in names} == {True}
    assert all("language_model" in name for name in adapted)


def test_lora_on_a_layer_that_is_not_there_is_refused(workplace):
    with pytest.raises(ValueError, match="`lora_target_modules` has `w_proj`, .* linear layers are down_proj"):
        training.run(workplace, use_peft=True, lora_target_modules=["q_proj", "w_proj"])
    with pytest.raises(ValueError, match="`lora_target_modules` has `lm_head`"):
        training.run(workplace, use_peft=True, lora_target_modules=["lm_head"])


def test_a_cut_weight_file_is_told(workplace):
    with open("start/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="A weight file of `start` cannot be read: .* damaged"):
        training.run(workplace)


# Going on.


def test_a_finished_stream_goes_on_from_its_last_checkpoint_to_its_end(workplace):
    changes = STREAM | SAVING
    training.run(workplace, **changes)
    Path("out/training.json").unlink()  # as if killed after its last checkpoint
    assert training.run(workplace, **changes).state.global_step == 2
    assert Path("out/training.json").is_file()


def test_a_checkpoint_that_is_named_is_looked_at_too(workplace):
    changes = {"max_steps": 2, "output_dir": "first"} | SAVING
    training.run(workplace, **changes)
    again = changes | {"output_dir": "second", "resume_from_checkpoint": "first/checkpoint-1"}
    with pytest.raises(ValueError, match="`first` holds another run than the one asked for:\n- learning_rate"):
        training.run(workplace, **again, learning_rate=0.5)
    assert training.run(workplace, **again).state.global_step == 2
    for path, words in (("first/checkpoint-1", "is not complete"), ("first/checkpoint-7", "is no folder")):
        Path("first/checkpoint-1/complete.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"`resume_from_checkpoint` names `{path}`, which {words}"):
            training.run(workplace, **again | {"resume_from_checkpoint": path, "output_dir": "third"})


@pytest.mark.parametrize("no", [False, "false"])  # of a YAML, and of the command line
def test_a_run_that_is_to_begin_anew_does_not_go_on(workplace, no):
    anew = {"max_steps": 1, "resume_from_checkpoint": no} | SAVING
    training.run(workplace, **anew)
    Path("out/training.json").unlink()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is false, and `out/checkpoint-1` is there, from"):
        training.run(workplace, **anew)


def test_a_line_of_the_log_counts_the_steps_before_the_checkpoint(workplace, monkeypatch):
    changes = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "max_length": 160}
    whole = training.run(workplace, **changes, output_dir="whole").state.log_history
    shutil.copytree("whole", "again")
    Path("again/training.json").unlink()
    shutil.rmtree("again/checkpoint-4")
    again = training.run(workplace, **changes, output_dir="again").state.log_history
    (line,), (wanted,) = training.steps_of(again), training.steps_of(whole)
    assert line["loss"] == wanted["loss"]
    # The summary is of the one step that was left.
    three = json.loads(Path("again/checkpoint-3/loss-0.json").read_text())["loss"]
    assert again[-1]["train_loss"] == pytest.approx(4 * wanted["loss"] - three, rel=1e-5)


def test_epochs_of_a_plan_end_where_they_end(workplace, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        LlavaTrainer, "_evaluate", lambda self, *args, **kwargs: evaluated.append(self.state.global_step) or {}
    )
    monkeypatch.setattr(LlavaTrainer, "_determine_best_metric", lambda *args, **kwargs: False)
    strategies = dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "epoch")
    trainer = training.run(workplace, num_train_epochs=3, eval_data=["data.jsonl"], max_length=300, **strategies)
    plan = trainer.data_collator.rows.plan
    ends = [*plan.epoch_starts[1:], len(plan)]  # of one row a step
    assert len(ends) == 3 and evaluated == ends
    assert [folder.name for folder in complete_checkpoints("out")] == [f"checkpoint-{end}" for end in ends]
    assert [entry["step"] for entry in training.steps_of(trainer.state.log_history)] == ends


def test_a_second_run_in_the_folder_is_refused(workplace):
    code = (
        "import sys\nfrom pathlib import Path\nfrom recipes.run_folder import alone_in\n"
        "with alone_in(Path('out'), True):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"Another run writes into `out` .process {other.pid} on "):
            training.run(workplace, max_steps=1)
        other.kill()  # leaves its file, but no lock
    assert Path("out", LOCK).exists()
    with alone_in(Path("out"), True):
        assert str(os.getpid()) in Path("out", LOCK).read_text()
    assert not Path("out", LOCK).exists()


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(workplace, monkeypatch, error):
    def fail(self, folder):
        raise error

    monkeypatch.setattr(LlavaTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(ValueError, match="No space is left .*out/checkpoint-1`; the last .* `out/checkpoint-1/"):
        training.run(workplace, max_steps=2, **SAVING)
    assert not list(Path("out").glob("checkpoint-*")) and not Path("out/training.json").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_was_stopped_says_so_to_the_shell(workplace, monkeypatch, number, status):
    step = LlavaTrainer.training_step
    saved = []

    def signalled(trainer, *args):
        os.kill(os.getpid(), number)
        return step(trainer, *args)

    monkeypatch.setattr(LlavaTrainer, "training_step", signalled)
    save = LlavaTrainer._save_checkpoint
    monkeypatch.setattr(LlavaTrainer, "_save_checkpoint", lambda *args: saved.append(1) or save(*args))
    path = training.write_yaml(workplace / "run.yaml", save_strategy="epoch")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--config", str(path)])
    assert stopped.value.code == status
    assert [folder.name for folder in complete_checkpoints("out")] == ["checkpoint-1"] and len(saved) == 1


def test_nothing_false_is_written_beside_the_weights(workplace):
    training.run(workplace, max_steps=1, use_peft=True, lora_r=2, **SAVING)
    assert not list(Path("out").rglob("README.md"))
    Path("own").mkdir()
    Path("own/README.md").write_text("Mine.")
    training.run(workplace, max_steps=1, output_dir="own")
    assert Path("own/README.md").read_text() == "Mine."


# Rows.


def test_an_error_of_a_worker_is_told_in_its_own_words(monkeypatch, capsys):
    def worker():
        try:
            raise KeyError("a")
        except KeyError as error:
            raise ImageError("`0` of conversation `x: y` is empty (0 bytes). Leave\nit out.") from error

    def main(arguments):
        try:
            worker()
        except ImageError:
            ExceptionWrapper(where="in DataLoader worker process 1").reraise()

    monkeypatch.setitem(sys.modules, "recipes_fake", types.SimpleNamespace(main=main))
    monkeypatch.setitem(cli.COMMANDS, "fake", ("recipes_fake", ""))
    assert cli.main(["fake"]) == 1
    told = capsys.readouterr().err
    assert told == "llava fake: error: `0` of conversation `x: y` is empty (0 bytes). Leave it out.\n"


def spoil(rows: list[dict]) -> None:
    rows[1]["messages"] = None
    rows[2]["messages"][0]["content"] = None
    del rows[3]["messages"][1]["role"]
    rows[4]["messages"][0] = None


def test_rows_without_what_they_need_are_counted_and_named(workplace, capsys):
    rows = rewrite("data.jsonl", spoil)
    training.write_data(workplace / "text.jsonl", trees=0, text_only=4)
    with pytest.raises(ValueError, match="4 of 16 conversations cannot be used") as error:
        training.run(workplace, data=["text.jsonl", "data.jsonl"])
    for row in rows[1:5]:
        assert f"conversation `{row['id']}`" in str(error.value)
    assert "(1 in `data.jsonl`)" in str(error.value) and "(1 in `text.jsonl`)" not in str(error.value)
    training.run(workplace, data=["text.jsonl", "data.jsonl"], skip_invalid=True)
    assert json.loads(Path("out/training.json").read_text())["data"]["conversations"] == 16


def test_messages_that_are_none_are_refused(tmp_path):
    for messages in ("Hello", [{"role": "user", "content": ["Hi"]}]):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "7", "messages": messages}) + "\n")
        with pytest.raises(
            ValueError, match="Conversation `7` of data set .*rows.jsonl has the messages .*; wanted a list"
        ):
            load_mixture([str(tmp_path / "rows.jsonl")], None, None, 0, True)


def test_a_row_of_a_stream_is_told_with_its_files(workplace):
    rewrite("data.jsonl", lambda rows: rows[3]["messages"].pop())
    with pytest.raises(ValueError, match="ends with a question.* The row is from `data.jsonl`"):
        training.run(workplace, **STREAM)


def test_missing_pictures_are_one_reason(tmp_path):
    rows = [sample(str(i)) | {"images": [str(tmp_path / f"no. {chr(97 + i)}.png")]} for i in range(5)]
    _, report = encode_rows(Dataset.from_list([sample("fine") | {"images": [_png(tmp_path)]}, *rows]), *OPTIONS)
    assert list(report.counts.values()) == [5]
    assert "does not exist" in next(iter(report.counts))
    text = "Message 3 of conversation `a` wants `role` and `content` for `a/b.png`"
    assert reason_of(text, "a") == "Message N of a conversation wants `role` and `content` for …"


OPTIONS = (tiny_text.processor(), 300, None, True)


def _png(folder: Path) -> str:
    training.write_data(folder / "fine.jsonl", trees=1)
    return str(folder / "fine-0.png")


def test_pictures_that_are_missing_are_counted_once_a_row(workplace):
    rewrite("data.jsonl", lambda rows: [row.update(images=["none.png"]) for row in rows[:3]])
    with pytest.raises(ValueError, match="3 of the 12 pictures of `data.jsonl` do not exist, such as `none.png`"):
        load_rows("data.jsonl")
    assert len(load_rows("data.jsonl", look_for_files=False)) == 12


def test_conversations_that_are_cut_are_counted(workplace, capsys):
    turns = [user("Where?", 0), assistant("There."), user("What?", 0), assistant("A circle. " * 20)]
    rewrite("data.jsonl", lambda rows: [row["messages"].extend(turns) for row in rows[:2]])
    training.run(workplace, max_steps=1, max_conversation_length=160)
    told = capsys.readouterr().out
    assert "2 conversations are longer than 160 tokens: they lost their last turns" in told
    cut = json.loads(Path("out/training.json").read_text())["data"]["cut"]
    assert cut["conversations"] == 2 and f"{cut['tokens']:,} tokens together" in told
    training.run(workplace, **STREAM | {"max_steps": 6}, max_conversation_length=160, output_dir="stream")
    facts = json.loads(Path("stream/training.json").read_text())["data"]
    assert facts["cut_by_this_process"] >= 2 and "were longer than 160 tokens and cut" in capsys.readouterr().out


def test_what_is_dropped_of_the_held_out_data_is_printed(workplace, capsys):
    training.write_data(workplace / "other.jsonl", trees=3, seed=1)
    rewrite("other.jsonl", lambda rows: rows[3]["messages"].pop())
    training.run(workplace, eval_data=["other.jsonl"], skip_invalid=True, max_steps=1, sample_answers=1)
    assert "held out: 1 of 6 conversations cannot be used.\n- 1 x" in capsys.readouterr().out
