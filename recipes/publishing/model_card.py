"""The card of a model: a README.md with the Hub's header, written from what really happened."""

import json
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from data_generation.card import YOURS
from recipes.publishing.card_example import Example
from recipes.publishing.local_paths import last_name, shorten
from recipes.publishing.model_history import UNKNOWN, Base, History, Source, Stage
from recipes.publishing.model_scores import Score
from recipes.publishing.old_card import header_of, old_words


TASK = "image-text-to-text"
LOSSES, EXAMPLE = "loss.png", "example"
ALL = ("all", "all kinds", "average", "overall")
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
        what_it_is(config, parameters, found, own, step),
        *([example_section(example)] if example else []),
        use_section(repo_id, example),
        *([scores_section(scores)] if scores else []),
        limits(found, own),
        made_of(found),
        *training_sections(found),
        f"## Cite\n\n{CITATION}",
        YOURS + old_words(old),
    ]
    return f"---\n{header(repo_id, found, own, header_of(old)).to_yaml()}\n---\n\n" + "\n\n".join(sections)


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
    results = [result_of(score) for score in scores if not score.is_part]
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


def what_it_is(config: dict[str, Any], parameters: int, found: History, scores: list[Score], step: int | None) -> str:
    vision, text, side = config["vision_config"], config["text_config"], config["vision_config"].get("image_size")
    tokens = f"{config['image_seq_length']:,} tokens of a picture"
    size = f"{side} x {side} pixels, " if isinstance(side, int) else ""
    words = [
        f"A LLaVA with {parameters:,} parameters, which answers questions about pictures in words. It loads in stock "
        f"`transformers`. Vision tower: `{vision['model_type']}` ({size}{tokens}); projector: "
        f"`{config.get('projector_type', 'mlp')}`; language model: `{text['model_type']}`."
    ]
    if step is not None:
        words.append(f"**Still in training:** these are the weights of step {step:,}.")
    elif found.stages and found.stages[-1].name == "pretrain":
        words.append("**Stage 1 only:** the projector has learned from captions; nothing has learned from questions.")
    if scores:
        told = [f"**{one.shown}** on {line(one.data)} ({line(one.group)}, {one.metric})" for one in foremost(scores)]
        words.append(f"In per cent, with 95 % intervals: {'; '.join(told)}.")
    return "\n\n".join(words)


def foremost(scores: list[Score]) -> list[Score]:
    """Of each data set the score over all of it; where there is none, its first."""
    found: dict[str, Score] = {}
    for score in scores:
        if score.data not in found or (score.group in ALL and found[score.data].group not in ALL):
            found[score.data] = score
    return list(found.values())


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
question = {quoted(asked)}
content = [{{"type": "image", "path": picture}}, {{"type": "text", "text": question}}]
chat = [{{"role": "user", "content": content}}]
print(ask(text=chat, return_full_text=False)[0]["generated_text"])
```"""


def quoted(text: str) -> str:
    """As Python reads it; a fence in the question would end the code."""
    return json.dumps(text.replace("```", "'''"), ensure_ascii=False)


def made_of(found: History) -> str:
    rows = [f"| {base.part} | {name_of(base)} | {line(base.licence)} |" for base in found.bases]
    words = "Licences are those of the base models' own cards, where those were at hand."
    return "\n".join(["## Made of", "", "| part | from | licence |", "|---|---|---|", *rows, "", words])


def name_of(base: Base) -> str:
    if base.is_on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    return UNKNOWN if base.name == UNKNOWN else f"`{shorten(base.name)}`, a folder that is not on the Hub"


# -- training --


def training_sections(found: History) -> list[str]:
    if not found.stages:
        return ["## Training\n\nThere is no record of its training beside the weights."]
    number = len(found.stages)
    sections = [f"## Training\n\nStarted from `{shorten(found.began_as or UNKNOWN)}`."]
    versions = [versions_of(stage) for stage in found.stages]
    for n, stage in enumerate(found.stages, 1):
        title = f"### Stage {n} of {number}: {STAGES.get(stage.name, stage.name)}"
        own = [versions[n - 1]] if versions[n - 1] and len(set(versions)) > 1 else []
        sections += [title, trainable_table(stage), data_list(stage), *settings(stage), *own]
    if any(any(stage.losses()) for stage in found.stages):
        sections.append(f"![losses by step]({LOSSES})")
    if versions[0] and len(set(versions)) == 1:
        sections.append(versions[0])
    names = "`training.json` has every setting and the log of the last stage; `training-1.json` and on those before."
    return [*sections, names if number > 1 else f"{names.partition(' of the last')[0]}."]


def trainable_table(stage: Stage) -> str:
    """Without parts that have no weights of their own, such as a head that is tied to the embeddings."""
    lines = ["| part | parameters | trained | learning rate |", "|---|---:|---:|---:|"]
    for row in stage.facts["trainable"]:
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        if row["parameters"]:
            lines.append(f"| {row['module']} | {row['parameters']:,} | {row['trained']:,} | {rate} |")
    return "\n".join(lines)


def data_list(stage: Stage) -> str:
    data = stage.facts["data"]
    words = f"{data['conversations']:,} conversations" if "conversations" in data else "Read as a stream"
    dropped = {reason: one["number"] for reason, one in (data.get("dropped") or {}).items()}
    if dropped:
        counts = ", ".join(f"{line(reason)} {number:,}" for reason, number in dropped.items())
        words += f"; left out: {counts}"
    if cut := (data.get("cut") or {}).get("conversations"):
        words += f"; cut to the longest length: {cut:,}"
    return "\n".join([f"{words}. Data:", "", *(f"- {source_words(source)}" for source in stage.sources)])


def source_words(source: Source) -> str:
    facts, name = source.facts, str(source.facts["data"])
    words = [f"[{name}](https://huggingface.co/datasets/{name})" if source.is_on_hub else f"`{last_name(name)}`"]
    rows, seen = facts.get("rows"), facts.get("rows_in_mixture")
    if isinstance(rows, int):
        words.append(f"{rows:,} rows" + (f" ({seen:,} in an epoch)" if seen not in (None, rows) else ""))
    if facts.get("fingerprint"):
        words.append(f"fingerprint `{facts['fingerprint']}`")
    words.append(f"written by {', '.join(f'`{line(model)}`' for model in source.models) or UNKNOWN}")
    return ", ".join([*words, f"licence {line(source.licence)}"])


def settings(stage: Stage) -> list[str]:
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
    lines = [f"Settings: {', '.join(f'{name} {value}' for name, value in shown.items())}."]
    where = [f"{done:,} steps"]
    if "seconds" in facts:
        where.append(f"{facts['seconds'] / 60:,.1f} minutes")
    if "hardware" in facts:
        where.append(f"{facts['processes']} x {facts['hardware']}")
        where.append(f"ended {facts['ended'][:10]}")
    lines.append(f"Run: {', '.join(where)}.")
    return lines


def versions_of(stage: Stage) -> str:
    versions, commit = stage.facts.get("versions"), str(stage.facts.get("commit") or "")
    if not versions:
        return ""
    changed = " with changes" if commit.endswith("-dirty") else ""
    at = f", commit {commit.removesuffix('-dirty')[:12]}{changed}" if commit else ""
    return f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}{at}."


# -- scores and limits --


def scores_section(scores: list[Score]) -> str:
    """A table for each data set; what its scores are made of is folded away."""
    sections = ["## Scores", "In per cent, with 95 % intervals."]
    for data in dict.fromkeys(score.data for score in scores):
        those = [score for score in scores if score.data == data]
        parts = [score for score in those if score.is_part]
        metrics = {score.metric for score in those}
        title = f"### {line(data)}" + (f": {those[0].metric}" if len(metrics) == 1 else "")
        sections += [title, scores_table([score for score in those if not score.is_part], len(metrics) > 1)]
        if parts:
            table = scores_table(parts, len(metrics) > 1)
            sections.append(f"<details><summary>By kind</summary>\n\n{table}\n\n</details>")
    if any(score.is_control for score in scores):
        words = "Controls are the same questions without the picture, or to something else: no scores of this model."
        sections.append(words)
    return "\n\n".join(sections)


def scores_table(scores: list[Score], has_metrics: bool) -> str:
    metric, rule = (" metric |", "---|") if has_metrics else ("", "")
    lines = [f"| part |{metric} questions | score |", f"|---|{rule}---:|---:|"]
    for score in scores:
        group = f"{line(score.group)} (control)" if score.is_control else line(score.group)
        own = f" {score.metric} |" if has_metrics else ""
        lines.append(f"| {group} |{own} {score.questions:,} | {score.shown} |")
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
