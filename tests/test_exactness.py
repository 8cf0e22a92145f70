"""Our training and stock TRL, on the same samples in every step: the same losses, gradient norms and parameters.

Stock: `SFTTrainer`, `LlavaForConditionalGeneration` and processor of transformers, TRL's vision collator, loss on the
assistant's tokens by the chat template. Ours: `llava train`.
"""

import pytest
from datasets import Dataset, Image, List
from transformers import AutoProcessor, LlavaForConditionalGeneration, set_seed
from trl import SFTConfig, SFTTrainer

from recipes import train as recipe
from recipes.training.train_data import load_rows
from tests import training


LANGUAGES = {
    "llama": {},
    "qwen2": {"kind": "qwen", "template": "chatml"},
    "mistral": {"text": {"sliding_window": 40}},
}
PER_ROW = 4  # samples, by the lengths of the data
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data(tmp_path / "data.jsonl", trees=12)
    return tmp_path


def ours(workplace, **changes):
    trainer = training.run(workplace, max_steps=3, **changes)
    plan = getattr(trainer.data_collator.rows, "plan", None)
    if plan is None:
        return trainer, None
    order = []
    for row in range(len(plan)):
        numbers = [int(i) for _, samples in plan.trees_of(row) for i in samples]
        assert len(numbers) == PER_ROW
        order += numbers
    assert plan.summary.sharing > 1.1  # the images are shared
    return trainer, order


def stock(order: list[int] | None, batch: int, accumulate: int = 1, **choices) -> SFTTrainer:
    rows = load_rows("data.jsonl")
    rows = rows.select(range(len(rows)) if order is None else order).cast_column("images", List(Image()))
    config, model_config = recipe.parser().parse_args_and_config(["--config", "run.yaml"])
    set_seed(config.seed)
    model = LlavaForConditionalGeneration.from_pretrained("start", attn_implementation="eager")
    recipe.choose_trainable(model, config, model_config.use_peft)
    same = ("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "weight_decay", "seed")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir="stock",
            assistant_only_loss=True,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=3,
            max_length=None,
            train_sampling_strategy="sequential",
            activation_checkpointing=False,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{name: getattr(config, name) for name in same},
        ),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained("start"),
        peft_config=recipe.lora_config(model, model_config) if model_config.use_peft else None,
    )
    trainer.train()
    return trainer


def check_equal(a, b, names: tuple[str, ...] = ("loss", "grad_norm", "entropy")) -> None:
    for one, other in zip(training.steps_of(a.state.log_history), training.steps_of(b.state.log_history), strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=2e-6), (name, one["step"])
    first, second = a.model.state_dict(), b.model.state_dict()
    assert first.keys() == second.keys()
    start = recipe.LlavaForConditionalGeneration.from_pretrained("start").state_dict()
    for name in first:
        assert (first[name] - second[name]).abs().max() < 1e-6, name
    moved = [name for name in start if name in first and (first[name] - start[name]).abs().max() > 1e-3]
    assert len(moved) > 10 or "base_model" in next(iter(first))  # the comparison is of something


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_of_trees_train_as_stock_trl(workplace, language):
    training.write_start(workplace / "start", language, **LANGUAGES[language])
    trained, order = ours(workplace, max_length=120 if language == "qwen2" else 320)  # another tokenizer
    check_equal(trained, stock(order, batch=PER_ROW))


def test_with_gradient_accumulation(workplace):
    """Two rows make a step here, four batches of two there."""
    training.write_start(workplace / "start")
    trained, order = ours(workplace, gradient_accumulation_steps=2)
    check_equal(trained, stock(order, batch=2, accumulate=4), ("loss", "grad_norm"))  # entropy: a mean of means


def test_with_lora(workplace):
    training.write_start(workplace / "start")
    trained, order = ours(workplace, **LORA)
    adapter = {name: p for name, p in trained.model.named_parameters() if "lora_B" in name}
    assert adapter and all(p.abs().max() > 0 for p in adapter.values())
    check_equal(trained, stock(order, batch=PER_ROW))


def test_with_padded_rows(workplace):
    training.write_start(workplace / "start")
    changes = {"packing": False, "per_device_train_batch_size": PER_ROW, "train_sampling_strategy": "sequential"}
    trained, _ = ours(workplace, **changes)
    assert isinstance(trained.train_dataset, Dataset)
    check_equal(trained, stock(None, batch=PER_ROW))
