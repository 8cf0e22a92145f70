"""The card of a model: a README.md with the Hub's header, written from what really happened."""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from data_generation.card import YOURS
from recipes.card_example import Example
from recipes.local_paths import last_name, shorten
from recipes.model_history import UNKNOWN, Base, History, Source, Stage, header_of, without_header
from recipes.model_scores import Score


TASK = "image-text-to-text"
LOSSES, EXAMPLE = "loss.png", "example"
STAGES = {
    "pretrain": "the projector alone, on captions",
    "finetune": "projector and language model, on instructions",
}
SETTINGS = (
    "learning_rate",
    "projector_lr",
    "vision_lr",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "max_grad_norm",
    "max_length",
    "packing",
    "bf16",
    "fp16",
    "seed",
)
CITATION = """```bibtex
@inproceedings{liu2023llava,
  title     = {Visual Instruction Tuning},
  author    = {Liu, Haotian and Li, Chunyuan and Wu, Qingyang and Lee, Yong Jae},
  booktitle = {NeurIPS},
  year      = {2023}
}
```"""
TO_FILL = """

## Licence and terms

To be filled in by whoever publishes this:

- licence of this model (also as `license` in the header):
- terms of the base models and of the data that bind it:
"""


def model_card(
    repo_id: str,
    config: dict[str, Any],
    parameters: int,
    found: History,
    scores: list[Score],
    example: Example | None,
    old: str,
    step: int | None = None,
) -> str:
    """`old` is the card that this one replaces; `step` is of a training that still goes on."""
    own = [score for score in scores if not score.is_control]
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        what_it_is(config, parameters, found, step),
        *([example_section(example)] if example else []),
        use_section(repo_id, example),
        made_of(found),
        *training_sections(found),
        *([scores_section(scores)] if scores else []),
        limits(found, own),
        f"## Cite\n\n{CITATION}",
        YOURS + old_words(old),
    ]
    return f"---\n{header(repo_id, found, own, header_of(old)).to_yaml()}\n---\n\n" + "\n\n".join(sections)


def old_words(old: str) -> str:
    """Below our line, what somebody wrote there; the whole text of a card that has no such line."""
    if YOURS in old:
        return old.partition(YOURS)[2]
    words = without_header(old).strip()
    return f"\n\n{words}\n" if words else TO_FILL


def header(repo_id: str, found: History, scores: list[Score], old: dict[str, Any]) -> ModelCardData:
    """Fields that a person gave stay, such as `license`; those that follow from the records are ours."""
    sources = [source.facts["data"] for stage in found.stages for source in stage.sources if source.is_on_hub]
    ours = {
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": list(dict.fromkeys([*(old.get("tags") or []), "llava"])),
        "base_model": [base.name for base in found.bases if base.is_on_hub] or old.get("base_model"),
        "datasets": list(dict.fromkeys(sources)) or old.get("datasets"),
    }
    kept = {name: value for name, value in old.items() if name not in {*ours, "model-index"}}
    results = [result_of(score) for score in scores]
    name = repo_id.rpartition("/")[2] if results else None
    return ModelCardData(**kept, **ours, model_name=name, eval_results=results or None)


def result_of(score: Score) -> EvalResult:
    ends = {} if score.low is None else {"low": round(score.low, 2), "high": round(score.high, 2), "level": 0.95}
    return EvalResult(
        task_type=TASK,
        dataset_type=re.sub(r"\W+", "-", score.data.lower()).strip("-"),
        dataset_name=score.data,
        dataset_config=score.group,
        metric_type=re.sub(r"\W+", "_", score.metric.lower()),
        metric_name=score.metric,
        metric_value=round(score.value, 2),
        metric_args={"questions": score.questions} | ({"interval": ends} if ends else {}),
    )


def what_it_is(config: dict[str, Any], parameters: int, found: History, step: int | None) -> str:
    vision, text = config["vision_config"], config["text_config"]
    tokens = f"{config['image_seq_length']:,} tokens of a picture"
    size = (
        f", {vision['image_size']}x{vision['image_size']} pixels" if isinstance(vision.get("image_size"), int) else ""
    )
    words = (
        f"A LLaVA with {parameters:,} parameters: it answers questions about pictures in words. A "
        f"`{vision['model_type']}` vision tower{size}, {tokens}, a `{config.get('projector_type', 'mlp')}` projector, "
        f"and a `{text['model_type']}` language model. It is made for stock `transformers`."
    )
    if step is not None:
        words += f"\n\n**Still in training:** these are the weights of step {step:,}."
    return words


def example_section(example: Example) -> str:
    lines = [f"![a picture]({EXAMPLE}{example.suffix})", "", f"> {line(example.question)}", ""]
    lines.append(f"{line(example.answer) or '(nothing)'}")
    if example.wanted:
        lines += ["", f"In the held-out data: {line(example.wanted)}"]
    return "\n".join(["## Example", "", *lines, "", "One answer, greedy; not chosen from several."])


def use_section(repo_id: str, example: Example | None) -> str:
    asked = example.question if example else "What is in the picture?"
    if example:
        imports = "from huggingface_hub import hf_hub_download\nfrom transformers import pipeline"
        picture = f'hf_hub_download("{repo_id}", "{EXAMPLE}{example.suffix}")'
    else:
        imports, picture = "from transformers import pipeline", '"picture.jpg"'
    return f"""## Use

```python
{imports}

ask = pipeline("image-text-to-text", model="{repo_id}")
picture = {picture}
content = [{{"type": "image", "path": picture}}, {{"type": "text", "text": {quoted(asked)}}}]
print(ask(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"])
```"""


def quoted(text: str) -> str:
    """As Python writes it; a fence in the question would end the code."""
    return repr(text.replace("```", "'''"))


def made_of(found: History) -> str:
    rows = [f"| {base.part} | {name_of(base)} | {line(base.licence)} |" for base in found.bases]
    words = "Licences are those of the base models' own cards, where those were at hand."
    return "\n".join(["## Made of", "", "| part | from | licence |", "|---|---|---|", *rows, "", words])


def name_of(base: Base) -> str:
    return f"[{base.name}](https://huggingface.co/{base.name})" if base.is_on_hub else f"`{shorten(base.name)}`"


# -- training --


def training_sections(found: History) -> list[str]:
    if not found.stages:
        return ["## Training\n\nThere is no record of its training beside the weights."]
    sections = []
    for number, stage in enumerate(found.stages, 1):
        what = STAGES.get(stage.name, stage.name)
        sections.append(
            "\n\n".join(
                [
                    f"## Training, stage {number} of {len(found.stages)}: {what}",
                    trainable_table(stage),
                    data_table(stage),
                    settings(stage),
                ]
            )
        )
    if any(any(stage.losses()) for stage in found.stages):
        sections.append(f"![losses by step]({LOSSES})")
    began = f"The first of these stages started from `{shorten(found.began_as or UNKNOWN)}`."
    names = "`training.json` has every setting and the log of the last stage; `training-1.json` and on those before."
    return [*sections, f"{began} {names if len(found.stages) > 1 else names.partition(';')[0] + '.'}"]


def trainable_table(stage: Stage) -> str:
    lines = ["| part | parameters | trained | learning rate |", "|---|---:|---:|---:|"]
    for row in stage.facts["trainable"]:
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        lines.append(f"| {row['module']} | {row['parameters']:,} | {row['trained']:,} | {rate} |")
    return "\n".join(lines)


def data_table(stage: Stage) -> str:
    lines = ["| data | rows | seen in an epoch | fingerprint | written by | licence |", "|---|---:|---:|---|---|---|"]
    lines += [data_row(source) for source in stage.sources]
    data = stage.facts["data"]
    words = [f"{data['conversations']:,} conversations."] if "conversations" in data else ["Read as a stream."]
    dropped = {reason: one["number"] for reason, one in (data.get("dropped") or {}).items()}
    if dropped:
        counts = ", ".join(f"{line(reason)} {number:,}" for reason, number in dropped.items())
        words.append(f"Left out: {counts}.")
    if cut := (data.get("cut") or {}).get("conversations"):
        words.append(f"Cut to the longest length: {cut:,}.")
    return "\n".join([*lines, "", " ".join(words)])


def data_row(source: Source) -> str:
    facts, name = source.facts, str(source.facts["data"])
    shown = f"[{name}](https://huggingface.co/datasets/{name})" if source.is_on_hub else f"`{last_name(name)}`"
    counts = [f"{facts[key]:,}" if isinstance(facts.get(key), int) else "" for key in ("rows", "rows_in_mixture")]
    models = ", ".join(f"`{line(model)}`" for model in source.models) or UNKNOWN
    cells = [shown, *counts, facts.get("fingerprint") or "", models, line(source.licence)]
    return f"| {' | '.join(cells)} |"


def settings(stage: Stage) -> str:
    facts, config = stage.facts, stage.facts["config"]
    shown = {name: config.get(name) for name in SETTINGS if config.get(name) not in (None, "", False)}
    if shown.get("max_steps") == -1:
        del shown["max_steps"]
    else:
        shown.pop("num_train_epochs", None)
    if config.get("use_peft"):
        shown |= {name: config.get(name) for name in ("lora_r", "lora_alpha", "lora_dropout")}
    rows = config.get("per_device_train_batch_size", 1) * config.get("gradient_accumulation_steps", 1)
    shown["rows in a step"] = rows * facts.get("processes", 1)
    if "plan" in facts:
        shown["conversations in a step"] = f"{facts['plan']['samples_per_step']:.1f}"
    done = max((entry["step"] for entry in facts["log"]), default=0)
    lines = [f"- {', '.join(f'{name} {value}' for name, value in shown.items())}"]
    where = [f"{done:,} steps"]
    if "seconds" in facts:
        where.append(f"{facts['seconds'] / 60:,.1f} minutes")
    if "hardware" in facts:
        where.append(f"{facts['processes']} x {facts['hardware']}")
        where.append(f"ended {facts['ended']}")
    lines.append(f"- {', '.join(where)}")
    if versions := facts.get("versions"):
        commit = f", commit {facts['commit']}" if facts.get("commit") else ""
        lines.append(f"- {', '.join(f'{name} {number}' for name, number in versions.items())}{commit}")
    return "\n".join(lines)


# -- scores and limits --


def scores_section(scores: list[Score]) -> str:
    lines = ["## Scores", "", "In per cent, with 95 % intervals.", ""]
    lines += ["| data | part | metric | questions | score |", "|---|---|---|---:|---:|"]
    for score in scores:
        group = f"{line(score.group)} (control)" if score.is_control else line(score.group)
        lines.append(f"| {line(score.data)} | {group} | {score.metric} | {score.questions:,} | {score.shown} |")
    if any(score.is_control for score in scores):
        words = "Controls are the same questions without the picture, or to something else: no scores of this model."
        lines += ["", words]
    return "\n".join(lines)


def limits(found: History, scores: list[Score]) -> str:
    lines = [
        "- It can describe what is not in a picture. Do not rely on it where a mistake does harm.",
        "- It has the faults of its base models and of its data, whatever they are.",
    ]
    if any(source.models for stage in found.stages for source in stage.sources):
        lines.append("- A language model that saw no picture wrote some of its data; its mistakes were learned too.")
    if not scores:
        lines.append("- No score was given with this card: how good it is, is not known.")
    unknown = [base.part for base in found.bases if base.licence == UNKNOWN]
    if unknown:
        lines.append(f"- The licence of its {' and '.join(unknown)} is not known here.")
    return "\n".join(["## Limits", "", *lines])


def line(value: object) -> str:
    """One line that Markdown shows as it is, also in a table."""
    return shorten(" ".join(str(value).split())).replace("<", "&lt;").replace("|", "\\|")
