"""What `llava reproduce` runs: parts, each of which leaves a file that says it is done.

smaller                        a language model of fewer layers, where a start wants one
seed-0/data                    the drawn world and its data, which all rows of a seed share
seed-0/starts/mlp              the halves joined, and stage 1
seed-0/rows/full-data          stage 2, an examination with and without picture, answers for the judge
seed-0/judge                   the answers of all rows, judged
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_generation.microworld.questions import Question, ask
from data_generation.microworld.scene import scene_of, scenes
from data_generation.microworld.source import annotated
from data_generation.microworld.wordings import LOOK_UPS, REASONING
from data_generation.replacing import write_atomically
from recipes.micro import exam
from recipes.quickstart import MICRO, PROCESSES, Quickstart, Size, build, llava, teacher, training
from recipes.training.checkpoints import FINISHED


KINDS = {"conversation": LOOK_UPS, "detail": ("detail",), "reasoning": REASONING}  # of data -> of its questions
DONE, JUDGED = "row.json", "results.json"
CONCLUSION = ", so "


@dataclass(frozen=True)
class Start:
    """What rows begin with: flags of `llava build`; a language model of fewer `layers`, taught for `heal_steps`."""

    build: list[str] = field(default_factory=list)
    layers: int | None = None
    heal_steps: int = 0


@dataclass(frozen=True)
class Row:
    """`kinds`: shares of the instruction data that are kept."""

    kinds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    start: str = "mlp"
    pretrain: bool = True
    answer_first: bool = False


@dataclass(frozen=True)
class Tables:
    """A file such as `recipes/micro/tables.yaml`, which says what its fields are."""

    seeds: list[int]
    scenes: int
    captioned: int
    steps: int
    questions_per_kind: int
    judged: int
    starts: dict[str, Start]
    data: dict[str, Row]
    model: dict[str, Row]

    @property
    def rows(self) -> dict[str, Row]:
        return self.data | self.model


def read_tables(path: Path) -> Tables:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_names(found, Tables, str(path))
    for section, kind in (("starts", Start), ("data", Row), ("model", Row)):
        for name, values in found[section].items():
            _check_names(values, kind, f"{path}, {section}, `{name}`")
            found[section][name] = kind(**values)
    tables = Tables(**found)
    for name, row in tables.rows.items():
        if unknown := row.kinds.keys() - KINDS.keys():
            raise ValueError(
                f"{path}, `{name}`: no kind of data is called `{min(unknown)}`. Wanted: {', '.join(KINDS)}."
            )
        if row.start not in tables.starts:
            raise ValueError(
                f"{path}, `{name}`: no start is called `{row.start}`. There are: {', '.join(tables.starts)}."
            )
    if shared := tables.data.keys() & tables.model.keys():
        raise ValueError(f"{path}: `{min(shared)}` is in both tables. Give one of them another name.")
    slugs = [slug(name) for name in tables.rows]
    if doubled := next((name for name in slugs if slugs.count(name) > 1), None):
        raise ValueError(f"{path}: two rows would have the folder `{doubled}`. Give one of them another name.")
    return tables


def _check_names(values: Any, kind: type, where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: found {values!r}, wanted names with values.")
    known = [one.name for one in fields(kind)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{where}: `{unknown[0]}` is not known. Wanted: {', '.join(known)}.")
    if kind is Tables and (missing := [name for name in known if name not in values]):
        raise ValueError(f"{where}: `{missing[0]}` is missing.")


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def plan(tables: Tables, rows: Sequence[str], seeds: Sequence[int]) -> dict[str, list[str]]:
    """The parts, each with those that it needs."""
    starts = list(dict.fromkeys(tables.rows[name].start for name in rows))
    smaller = {name: f"smaller/{slug(name)}" for name in starts if tables.starts[name].layers}
    found: dict[str, list[str]] = {part: [] for part in smaller.values()}
    for seed in seeds:
        data = f"seed-{seed}/data"
        found[data] = []
        for name in starts:
            found[f"seed-{seed}/starts/{slug(name)}"] = [data] + ([smaller[name]] if name in smaller else [])
        of_rows = {f"seed-{seed}/rows/{slug(name)}": tables.rows[name].start for name in rows}
        found |= {part: [f"seed-{seed}/starts/{slug(start)}"] for part, start in of_rows.items()}
        found[f"seed-{seed}/judge"] = list(of_rows)
    return found


def result_of(folder: Path, part: str) -> Path:
    """What is there when the part is done."""
    seed, _, what = part.partition("/")
    if seed == "smaller":
        return folder / part / "made.json"
    if what == "data":
        return folder / seed / "instruct/README.md"
    if what == "judge":
        return folder / seed / "judge" / JUDGED
    return folder / part / (DONE if what.startswith("rows/") else f"stage1/{FINISHED}")


class Parts:
    """Of one seed."""

    def __init__(self, folder: Path, tables: Tables, seed: int):
        self.folder, self.tables, self.seed = folder / f"seed-{seed}", tables, seed
        self.everything = folder

    def data(self) -> None:
        """By the quickstart's own commands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        size = Size(scenes=self.tables.scenes, captioned=self.tables.captioned, per_kind=0, dialogues=0)
        quickstart = Quickstart(self.folder, size, self.seed)
        quickstart.draw()
        if not (self.folder / "captions.parquet").exists():
            quickstart.pair()
        quickstart.generate()

    def start(self, name: str) -> None:
        start, at = self.tables.starts[name], self.folder / "starts" / slug(name)
        half = {"language": self.everything / "smaller" / slug(name)} if start.layers else {}
        if not (at / "start/model.safetensors").exists():
            build(at / "start", self.seed, *start.build, **half)
        self.train("pretrain", at / "start", self.folder / "captions.parquet", at / "stage1")

    def train(self, stage: str, start: Path, data: Path, out: Path, *flags: str) -> None:
        words = training(stage, start, data, self.folder / "world", out, self.seed)
        # One process: other rows have the other cores.
        llava("train", *words, "--gradient_accumulation_steps", str(PROCESSES), *flags)

    def row(self, name: str) -> None:
        row, at = self.tables.rows[name], self.folder / "rows" / slug(name)
        at.mkdir(parents=True, exist_ok=True)
        start = self.folder / "starts" / slug(row.start) / ("stage1" if row.pretrain else "start")
        checkpoint = at / "stage2" if row.kinds else start
        if row.kinds and not (checkpoint / FINISHED).exists():
            data = at / "instruct.parquet"
            pq.write_table(choose(self.folder / "instruct", row, self.seed), data)
            # More epochs than are needed: `max_steps` ends it.
            steps = ["--max_steps", str(self.tables.steps), "--num_train_epochs", "20", "--save_steps", "1000"]
            self.train("finetune", start, data, checkpoint, *steps)
        self.examine(row, checkpoint, at)

    def examine(self, row: Row, checkpoint: Path, at: Path) -> None:
        examiner = exam.Examiner(checkpoint, "cpu")
        asked = exam.questions("test", self.tables.questions_per_kind)
        if row.answer_first:
            asked = [replace(one, wanted=with_answer_first(one.wanted)) for one in asked]
        names = [one.scene for one in asked]
        seen = examiner.answers(asked, exam.pictures_of(names), "seeing")
        blind = examiner.answers(asked, exam.black_pictures(names), "black picture")
        chat = chat_questions(self.tables.judged)
        asked = [exam.Asked(scene, question.kind, question.text, question.answer) for scene, _, question in chat]
        answers = examiner.answers(asked, exam.pictures_of([one.scene for one in asked]), "for the judge")
        lines = [json.dumps({"question_id": i, "text": one.answer}) for i, one in enumerate(answers)]
        write_atomically(at / "answers.jsonl", "\n".join(lines) + "\n")
        write_atomically(at / "seen.json", exam.written(seen))
        by_kind, concluded = exam.shares(seen), [one for one in seen if one.kind in REASONING]
        figures = {
            "by_kind": by_kind,
            "exact": exam.mean(by_kind),
            "blind": exam.mean(exam.shares(blind)),
            "conclusions": sum(conclusion(one.answer) == conclusion(one.wanted) for one in concluded) / len(concluded),
        }
        write_atomically(at / DONE, json.dumps(figures, indent=1))

    def judge(self, rows: Sequence[str]) -> None:
        """The benchmark of 30 pictures and 90 questions in small: reference answers are the teacher's."""
        at = self.folder / "judge"
        at.mkdir(exist_ok=True)
        chat = chat_questions(self.tables.judged)
        questions, context, reference = [], {}, []
        for i, (scene, kind, question) in enumerate(chat):
            questions.append({"question_id": i, "image": f"{scene}.png", "text": question.text, "category": kind})
            reference.append({"question_id": i, "text": question.answer})
            image = annotated(scene_of(scene))
            boxes = [{"label": box.label, "box": [box.x1, box.y1, box.x2, box.y2]} for box in image.boxes]
            context[scene] = {"image": f"{scene}.png", "captions": list(image.captions), "boxes": boxes}
        files = {"questions": questions, "context": list(context.values()), "reference": reference}
        for name, found in files.items():
            write_atomically(at / f"{name}.jsonl", "\n".join(map(json.dumps, found)) + "\n")
        answers = []
        for name in rows:
            # The judge's table calls a candidate by its file.
            answers.append(at / f"{slug(name)}.jsonl")
            write_atomically(answers[-1], (self.folder / "rows" / slug(name) / "answers.jsonl").read_text())
        inputs = [word for name in files for word in (f"--{name}", str(at / f"{name}.jsonl"))]
        with teacher(self.seed) as url:
            # The ledger knows the server by this name, as its address is another one each time.
            server = ["--base-url", url, "--server", "micro-teacher", "--model", "microworld"]
            llava("judge", *inputs, "--answers", *map(str, answers), *server, "--out", str(at))


def choose(instruct: Path, row: Row, seed: int) -> pa.Table:
    """The rows of the kinds that are wanted; of a kind in part, always the same ones."""
    table = pq.read_table(instruct / "data")
    rng = random.Random(f"choose {seed}")
    kept = [rng.random() < row.kinds.get(kind, 0.0) for kind in table["kind"].to_pylist()]
    table = table.filter(kept)
    if not row.answer_first:
        return table
    messages = table["messages"].to_pylist()
    for message in (message for talk in messages for message in talk if message["role"] == "assistant"):
        for part in message["content"]:
            part["text"] = with_answer_first(part["text"])
    column = table.schema.field("messages")
    return table.set_column(table.schema.get_field_index("messages"), column, pa.array(messages, column.type))


def with_answer_first(text: str) -> str:
    """`There is one ring and no cross, so there are more rings.` as `There are more rings: there is one ring ...`"""
    reason, found, answer = text.removesuffix(".").partition(CONCLUSION)
    return f"{answer[0].upper()}{answer[1:]}: {reason[0].lower()}{reason[1:]}." if found else text


def conclusion(text: str) -> str:
    """What an answer comes to, whether it says it first or last."""
    words = text.removesuffix(".")
    return (words.partition(CONCLUSION)[2] or words.partition(":")[0]).lower()


def chat_questions(number: int) -> list[tuple[str, str, Question]]:
    """Scene, kind of data and question: one of each kind about each of the first scenes of `test`."""
    rng, found = random.Random("chat questions"), []
    for scene in scenes("test", number):
        for kind, kinds in KINDS.items():
            asked = (ask(scene.things, one, rng) for one in rng.sample(kinds, len(kinds)))
            question = next((question for question in asked if question is not None), None)
            if question is not None:
                found.append((scene.id, kind, question))
    return found


def shorten(tokenizer_folder: Path, layers: int, heal_steps: int, out: Path) -> None:
    """The shipped language model without the layers after the first `layers`, taught the last lesson again."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from recipes.micro.language import measure, train_language

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = LlamaForCausalLM.from_pretrained(tokenizer_folder, dtype=torch.float32)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model = train_language(tokenizer, heal_steps, 0, print, model=model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    scores = measure(model, tokenizer)
    write_atomically(out / "made.json", json.dumps({"layers": layers, "heal_steps": heal_steps, "told": scores}))


def run_part(folder: Path, tables: Tables, part: str, rows: Sequence[str]) -> None:
    seed, _, what = part.partition("/")
    if seed == "smaller":
        start = next(start for name, start in tables.starts.items() if slug(name) == what)
        return shorten(MICRO / "halves/language", start.layers, start.heal_steps, folder / part)
    parts = Parts(folder, tables, int(seed.removeprefix("seed-")))
    kind, _, wanted = what.partition("/")
    if kind == "data":
        parts.data()
    elif kind == "judge":
        parts.judge(rows)
    elif kind == "starts":
        parts.start(next(name for name in tables.starts if slug(name) == wanted))
    else:
        parts.row(next(name for name in tables.rows if slug(name) == wanted))
