"""`index.html` of a quickstart: what was asked, what was answered after each stage, the table, the curves."""

import base64
import html
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from data_generation.microworld.draw import draw
from data_generation.microworld.scene import scene_of
from data_generation.page import document, table
from data_generation.replacing import write_atomically
from recipes.micro import exam
from recipes.micro.results import cells
from recipes.training.checkpoints import FINISHED
from recipes.training.samples import chart


SIDE = 420  # pixels; the model saw 64
NUM_SCENES = 8
PER_SCENE = 5
NUM_DIALOGUES = 3
NUM_MISTAKES = 6

STYLE = """
.right { color: #1b7f3b; } .wrong { color: #b3261e; }
@media (prefers-color-scheme: dark) { .right { color: #6fce8d; } .wrong { color: #ff8a80; } }
article img { width: min(19rem, 80vw); } .words table { table-layout: fixed; }
"""

WHAT_IS_MEANT = {
    "stage 2": "pictures of scenes that nobody trained on",
    "dialogues": "three turns, the model reading its own earlier answers",
    "new combinations": "colours and shapes that met in no picture of any training; the language model read of them",
    "black picture": "the same questions, the picture black",
    "another scene's": "the same questions, another scene's picture",
    "stage 1 only": "the projector alone has learned, from captions",
    "constant answers": "the answer most frequent in training to each question, without any model",
}
FILES = {
    "world/": "the drawn pictures, <code>scenes.jsonl</code> with captions and boxes, <code>pairs.jsonl</code>",
    "captions.parquet": "data of stage 1, made by <code>llava captions</code>",
    "instruct/": "data of stage 2, made by <code>llava generate</code>: rows, ledger, card, "
    '<a href="instruct/report.html">report.html</a>',
    "start/": "tower, new projector and language model, joined by <code>llava build</code>",
    "stage1/": "checkpoint of stage 1, and <code>training.json</code>: settings, versions, what was trained, the log",
    "stage2/": "the result: a checkpoint for stock transformers",
    "exam/": "every question with the answer that was wanted and the one that was given",
    "results.json": "every figure of this page; docs/quickstart.md says what its fields are",
}


def write_page(folder: Path, results: dict[str, Any], path: Path) -> None:
    after = {name: exam.read(folder / f"exam/{exam.file_name(name)}.json") for name in ("stage 2", "stage 1 only")}
    dialogues = exam.read(folder / "exam/dialogues.json")
    curves = "".join(_curve(folder, stage, title) for stage, title in (("stage1", "Stage 1"), ("stage2", "Stage 2")))
    scores = results["scores"]
    seen, blind = scores["stage 2"]["mean"], scores["black picture"]["mean"]
    files = [[f"<code>{name}</code>", what] for name, what in FILES.items()]
    body = f"""<h1>{100 * seen:.0f} of 100 answers right</h1>
<p>{results["questions_per_kind"]} questions of each of {len(scores["stage 2"]["by_kind"])} kinds, about pictures that
nobody trained on, answered freely and right only if every word is. With a black picture it is {100 * blind:.0f}.
The tower and the language model came pretrained, each on its own; how the two were joined is what was trained here,
in {_minutes(results["seconds"])}.</p>
<h2>Answers</h2>
{_scenes(after)}
<h2>Dialogues</h2>
{_dialogues(dialogues)}
<h2>What it gets wrong</h2>
{_mistakes(after["stage 2"])}
<h2>Scores</h2>
{_table(scores)}
<ul class="faint">{"".join(f"<li>{name}: {WHAT_IS_MEANT[name]}</li>" for name in scores)}</ul>
<h2>Losses</h2>
<div class="charts">{curves}</div>
<h2>What is in this folder</h2>
{table(["", ""], files, "")}
<h2>In stock transformers</h2>
<pre>{html.escape(_stock(folder, after["stage 2"][0]))}</pre>
<h2>Next</h2>
<pre>{html.escape(_next(folder))}</pre>
<p class="faint">seed {results["seed"]}, {results["hardware"]}, {results["ended"]}, commit {results["commit"]}</p>"""
    write_atomically(path, document("quickstart", body, STYLE))


def _scenes(after: dict[str, list[exam.Asked]]) -> str:
    first = {(one.scene, one.question): one for one in after["stage 1 only"]}
    by_scene: dict[str, list[exam.Asked]] = {}
    for one in after["stage 2"]:
        by_scene.setdefault(one.scene, []).append(one)
    articles = []
    for number, (scene, asked) in enumerate(list(by_scene.items())[:NUM_SCENES]):
        # Not the same kinds under every picture.
        start = number * PER_SCENE % max(len(asked), 1)
        chosen = (asked[start:] + asked[:start])[:PER_SCENE]
        rows = [[html.escape(one.question), marked(first[one.scene, one.question]), marked(one)] for one in chosen]
        answers = table(["", "after stage 1", "after stage 2"], rows, "")
        articles.append(f'<article>{picture(scene)}<div class="words">{answers}</div></article>')
    return "\n".join(articles)


def _dialogues(asked: list[exam.Asked]) -> str:
    talks: dict[str, list[exam.Asked]] = {}
    for one in asked:
        talks.setdefault(one.scene, []).append(one)
    articles = []
    for scene, turns in list(talks.items())[:NUM_DIALOGUES]:
        said = "".join(f"<p>{html.escape(one.question)}<br>{marked(one)}</p>" for one in turns)
        articles.append(f'<article>{picture(scene)}<div class="words">{said}</div></article>')
    return "\n".join(articles)


def _mistakes(asked: list[exam.Asked]) -> str:
    wrong = [one for one in asked if not one.is_right]
    if not wrong:
        return "<p>Nothing, this time.</p>"
    chosen = wrong[:: max(1, len(wrong) // NUM_MISTAKES)][:NUM_MISTAKES]
    return "\n".join(
        f'<article>{picture(one.scene)}<div class="words"><p>{html.escape(one.question)}<br>{marked(one)}</p>'
        f'<p class="faint">wanted: {html.escape(one.wanted)}</p></div></article>'
        for one in chosen
    )


def marked(one: exam.Asked) -> str:
    mark, name = ("✓", "right") if one.is_right else ("✗", "wrong")
    return f'<span class="{name}">{mark} {html.escape(one.answer) or "(nothing)"}</span>'


def picture(scene: str) -> str:
    file = BytesIO()
    draw(scene_of(scene), SIDE).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<div class="picture"><img src="data:image/png;base64,{data}" alt="{scene}"></div>'


def _table(scores: dict[str, Any]) -> str:
    rows = [
        [f"<b>{cell}</b>" for cell in (kind, *shares)] if kind == "mean" else [kind, *shares]
        for kind, shares in cells(scores)
    ]
    return table(["", *scores], rows, "n" * len(scores))


def _curve(folder: Path, stage: str, title: str) -> str:
    log = json.loads((folder / stage / FINISHED).read_text())["log"]
    learned = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    return f"<figure>{chart(learned, [])}<figcaption class=faint>{title}: training loss</figcaption></figure>"


def _minutes(seconds: dict[str, float]) -> str:
    return f"{(seconds.get('stage1', 0) + seconds.get('stage2', 0)) / 60:.1f} minutes"


def _stock(folder: Path, one: exam.Asked) -> str:
    return f"""from transformers import pipeline

ask = pipeline("image-text-to-text", model="{folder}/stage2")
picture = "{folder}/world/pictures/microworld-train-0-000000.png"
content = [{{"type": "image", "path": picture}}, {{"type": "text", "text": "{one.question}"}}]
print(ask(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"])"""


def _next(folder: Path) -> str:
    return f"""# talk to it through the OpenAI API
transformers serve --force-model {folder}/stage2

# your own pictures: a line of JSON about each, as in {folder}/world/scenes.jsonl; a real model writes about them
llava generate --source jsonl --data scenes.jsonl --model gpt-4o-mini --out data/instruct --dry-run

# train on that
llava train --config recipes/llava-v1.5-7b/finetune.yaml --data data/instruct --image_root pictures"""
