"""The card of a model: every figure from a record, exact; what is not known is said to be unknown."""

import json
from io import BytesIO

import pytest
import yaml
from PIL import Image

from data_generation.card import YOURS
from data_generation.rows import messages_of, row_features, write_rows
from recipes.publishing.card_example import Example, from_page
from recipes.publishing.loss_plot import HEIGHT, WIDTH, draw_losses
from recipes.publishing.model_card import model_card
from recipes.publishing.model_history import bases, history, records
from recipes.publishing.model_scores import Score, read_scores
from recipes.publishing.old_card import TO_FILL, header_of, joined
from recipes.publishing.push_data import data_card, data_files
from recipes.training.samples import article


CONFIG = {
    "model_type": "llava",
    "image_seq_length": 9,
    "projector_type": "linear",
    "vision_config": {"model_type": "clip_vision_model", "image_size": 48, "_name_or_path": "openai/clip-vit-x"},
    "text_config": {"model_type": "llama"},
}
SETTINGS = {
    "learning_rate": 0.001,
    "num_train_epochs": 2,
    "max_steps": -1,
    "lr_scheduler_type": "cosine",
    "packing": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
}


def facts(folder, stage: str, model: str, data: list, **more) -> dict:
    made = {
        "stage": stage,
        "model": model,
        "data": {"sources": data, "conversations": 1500, "dropped": {"too long": {"number": 7}}, "cut": {}},
        "config": SETTINGS | {"output_dir": str(folder)},
        "trainable": [
            {"module": "vision_tower", "parameters": 761728, "trained": 0, "learning_rate": None},
            {"module": "multi_modal_projector", "parameters": 33024, "trained": 33024, "learning_rate": 0.002},
        ],
        "log": [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "eval_loss": 1.5}],
        "processes": 2,
        "hardware": "one CPU",
        "seconds": 90.0,
        "ended": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13"},
        "commit": "abc",
    }
    return made | more


@pytest.fixture
def trained(tmp_path):
    """Two stages; the second one's data was written by two models and lies here, the first one's is of the Hub."""
    captions = {"data": "org/captions", "rows": 1000, "fingerprint": "f1", "weight": 1.0, "rows_in_mixture": 500}
    made = {"data": str(tmp_path / "instruct"), "rows": 3, "fingerprint": "f2", "weight": 2.0, "rows_in_mixture": 6}
    (tmp_path / "instruct").mkdir()
    (tmp_path / "instruct/README.md").write_text("---\nlicense: cc-by-4.0\n---\n# x\n")
    row = {"images": [], "messages": messages_of([("Q", "A")], 0), "kind": "detail", "source": "s", "image_id": []}
    rows = [row | {"id": str(n), "model": model} for n, model in enumerate(("gpt-b", "gpt-a", "gpt-b"))]
    columns = row_features(False, model=row_features(False)["id"])
    write_rows(rows, tmp_path / "instruct/train.parquet", columns)
    for name, stage, model, data in (("one", "pretrain", "start", captions), ("two", "finetune", "one", made)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
        written = facts(tmp_path / name, stage, str(tmp_path / model), [data])
        (tmp_path / name / "training.json").write_text(json.dumps(written))
    return tmp_path / "two"


def card_of(trained, **changes) -> str:
    given = {"scores": [], "example": None, "old": ""} | changes
    return model_card("ada/small", CONFIG, 2238208, history(trained), **given)


def test_the_card_has_the_records_figures(trained):
    card = card_of(trained)
    assert "A LLaVA with 2,238,208 parameters" in card
    assert "Vision tower: `clip_vision_model` (48 x 48 pixels, 9 tokens of a picture); projector: `linear`" in card
    assert "| vision_tower | 761,728 | 0 |  |\n| multi_modal_projector | 33,024 | 33,024 | 0.002 |" in card
    first, second = card.split("### Stage 2 of 2: projector and language model, on instructions")
    assert "### Stage 1 of 2: the projector alone, on captions" in first
    link = "[org/captions](https://huggingface.co/datasets/org/captions)"
    assert f"- {link}, 1,000 rows (500 in an epoch), fingerprint `f1`, written by unknown, licence unknown" in first
    said = "- `instruct`, 3 rows (6 in an epoch), fingerprint `f2`, written by `gpt-a`, `gpt-b`, licence cc-by-4.0"
    assert f"1,500 conversations; left out: too long 7. Data:\n\n{said}\n" in second
    # 4 rows a device x 3 times x 2 processes
    assert (
        "learning_rate 0.001, num_train_epochs 2, lr_scheduler_type cosine, packing True, rows in a step 24" in second
    )
    assert "Run: 20 steps, 1.5 minutes, 2 x one CPU, ended 2026-01-01.\n" in second
    assert card.count("Versions: torch 2.13, commit abc.") == 1  # of both stages
    assert "## Training\n\nStarted from `start`." in first
    assert "its mistakes were learned too" in first and "No score was given" in first
    assert str(trained.parent) not in card


def test_the_header_is_the_hubs(trained):
    scores = [
        Score("POPE", "random", "accuracy", 87.654, 85.0, 90.0, 3000),
        Score("micro world", "black picture", "exact match", 17.8, 16.0, 19.0, 4200, is_control=True),
    ]
    header = header_of(card_of(trained, scores=scores))
    assert header["base_model"] == ["openai/clip-vit-x"]
    assert header["datasets"] == ["org/captions"]
    assert (header["pipeline_tag"], header["library_name"]) == ("image-text-to-text", "transformers")
    (index,) = header["model-index"]
    (result,) = index["results"]  # a control is none
    assert index["name"] == "small"
    assert result["task"] == {"type": "image-text-to-text"}
    assert result["dataset"] == {"name": "POPE", "type": "pope", "config": "random"}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"], metric["name"]) == ("accuracy", 87.65, "accuracy")
    assert metric["args"] == {"questions": 3000, "interval": {"low": 85.0, "high": 90.0, "level": 0.95}}
    card = card_of(trained, scores=scores)
    assert "| random | 3,000 | 87.7 [85.0, 90.0] |" in card.partition("### POPE: accuracy")[2]
    wanted = "| black picture (control) | 4,200 | 17.8 [16.0, 19.0] |"
    assert wanted in card.partition("### micro world")[2]
    assert card.partition("## Use")[0].endswith("**87.7 [85.0, 90.0]** on POPE (random, accuracy).\n\n")


def test_what_a_person_wrote_stays(trained):
    mine = "---\nlicense: mit\ntags:\n- mine\nlibrary_name: other\n---\n\n# Old\n\nMy words.\n"
    card = card_of(trained, old=mine)
    header = header_of(card)
    assert (header["license"], header["tags"], header["library_name"]) == ("mit", ["mine", "llava"], "transformers")
    assert card.endswith(f"{YOURS}\n\n# Old\n\nMy words.\n")
    assert card_of(trained, old=card) == card  # written again, it is the same
    assert card_of(trained).endswith("- terms of the base models and of the data that bind it:\n")


def test_words_of_the_folder_and_of_the_hub_are_joined():
    here = f"---\ntags:\n- a\n---\n\n# x\n{YOURS}{TO_FILL}"
    there = f"---\nlicense: mit\ntags:\n- b\n---\n\n# old\n{YOURS}\n\nBe kind.\n"
    card, is_lost = joined(here, there)  # in the folder nobody wrote any
    assert header_of(card) == {"license": "mit", "tags": ["a"]}
    assert card.endswith(f"# x\n{YOURS}\n\nBe kind.\n") and not is_lost
    mine = here.replace(TO_FILL, "\n\nMine.\n")
    card, is_lost = joined(mine, there)
    assert card.endswith(f"{YOURS}\n\nMine.\n") and is_lost
    assert joined(mine, mine) == (mine, False)
    assert joined("", there) == (there, False) and joined(here, "") == (here, False)


def test_a_stage_that_followed_no_question_says_so(trained):
    assert "**Stage 1 only:**" in model_card("ada/x", CONFIG, 1, history(trained.parent / "one"), [], None, "")
    assert "**Stage 1 only:**" not in card_of(trained)


def test_a_question_cannot_get_out_of_its_place(trained):
    asked = 'What is "this"?\n```\n<script>| x'
    card = card_of(trained, example=Example(b"", ".png", asked, "A | B\n# C <b>", "W"))
    code = card.split("```python\n")[1].split("```")[0]
    assert compile(code, "card", "exec")
    assert '> What is "this"? ``` &lt;script>\\| x\n\nA \\| B # C &lt;b>\n\nIn the held-out data: W' in card


def test_records_are_published_without_local_paths(trained):
    uploads = records(history(trained))
    assert [upload.name for upload in uploads] == ["training-1.json", "training.json"]
    published = json.loads(uploads[1].read())
    assert (published["model"], published["config"]["output_dir"]) == ("one", "two")
    assert published["data"]["sources"][0]["data"] == "instruct"
    assert published["log"] == json.loads((trained / "training.json").read_text())["log"]


def test_a_model_without_records_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    card = model_card("ada/x", CONFIG, 1, history(tmp_path), [], None, "")
    assert "There is no record of its training beside the weights." in card
    assert "| language model | unknown | unknown |" in card
    assert "The licence of its vision tower and language model is not known here." in card


def test_a_step_of_a_training_that_goes_on_says_so(trained):
    card = model_card("ada/x", CONFIG, 1, history(trained), [], None, "", step=1200)
    assert "**Still in training:** these are the weights of step 1,200." in card


def test_licences_are_those_of_cards_at_hand(tmp_path):
    (tmp_path / "halves/language").mkdir(parents=True)
    (tmp_path / "halves/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = CONFIG | {"text_config": {"_name_or_path": str(tmp_path / "halves/language")}}
    assert [(base.part, base.licence) for base in bases(config)] == [
        ("vision tower", "unknown"),
        ("language model", "apache-2.0"),
    ]


@pytest.mark.parametrize("content, words", [("{", "is no JSON"), ("[]", "wanted an object"), ("{}", "has no `stage`")])
def test_a_record_that_is_none_is_an_error(trained, content, words):
    (trained / "training.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        history(trained)


# -- scores --


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_scores_of_a_benchmark(tmp_path):
    estimate = {"value": 0.875, "low": 0.85, "high": 0.9}
    none = {"value": None, "low": None, "high": None}
    scores = {"all": {"answers": 800, "accuracy": estimate, "precision": none}}
    path = write(tmp_path / "s.json", {"benchmark": "pope", "scores": scores})
    assert read_scores(path, "x") == [Score("POPE", "all", "accuracy", 87.5, 85.0, 90.0, 800)]


def test_scores_of_a_judge(tmp_path):
    figures = {"score": 85.1, "low": 80.0, "high": 90.5, "questions": 90}
    candidates = {name: {"scores": {"all": figures | {"score": score}}} for name, score in (("a", 1.0), ("b", 85.1))}
    content = {"judge": {"model": "gpt"}, "questions": {"from": "/home/ada/qa90.jsonl"}, "candidates": candidates}
    path = write(tmp_path / "results.json", content)
    wanted = Score("qa90.jsonl, judged by gpt", "all", "relative score", 85.1, 80.0, 90.5, 90)
    assert read_scores(path, "b") == [wanted]
    with pytest.raises(ValueError, match="has the candidates a, b, none of which is called `c`"):
        read_scores(path, "c")


def test_scores_of_scienceqa_and_of_the_quickstart(tmp_path):
    tally = {"problems": 100, "right": 50, "accuracy": 0.5}
    path = write(tmp_path / "q.json", {"scores": {"average": tally}, "forms": {}, "problems": {}})
    (score,) = read_scores(path, "x")
    # Wilson's interval of 50 of 100
    assert (score.data, score.group, score.value, score.questions) == ("ScienceQA", "average", 50.0, 100)
    assert (round(score.low, 2), round(score.high, 2)) == (40.38, 59.62)
    found = {"questions": 4, "right": 0.75, "mean": 0.75, "by_kind": {"colour": 1.0, "at": 0.5}}
    path = write(tmp_path / "r.json", {"questions_per_kind": 2, "scores": {"stage 2": found, "black picture": found}})
    told = [(score.group, score.value, score.questions, score.is_control) for score in read_scores(path, "x")]
    assert told == [
        ("all kinds", 75.0, 4, False),
        ("colour", 100.0, 2, False),
        ("at", 50.0, 2, False),
        ("a black picture", 75.0, 4, True),
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is no JSON"),
        ("[]", "wanted an object"),
        ("{}", "is of no kind that is known here"),
        ('{"benchmark": "pope"}', "is not as it was written: `'scores'`"),
        ('{"benchmark": "pope", "scores": {}}', "has no score"),
    ],
)
def test_a_file_without_scores_is_an_error(tmp_path, content, words):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_scores(tmp_path / "s.json", "x")
    with pytest.raises(ValueError, match="cannot be read"):
        read_scores(tmp_path / "none.json", "x")


# -- pictures --


def test_the_example_is_the_first_of_the_samples_page(tmp_path):
    file = BytesIO()
    Image.new("RGB", (20, 10), "red").save(file, "PNG")
    asked = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What <is> it?\nSay."}]},
    ]
    sample = {"id": "a&b", "asked": asked, "answer": "Red & wide.", "images": [file.getvalue()]}
    page = article(sample, [(20, "Red <b>."), (10, "Rd")]) + article(sample | {"answer": "no"}, [(20, "no")])
    (tmp_path / "samples.html").write_text(f"<html><b>x</b>{page}</html>")
    found = from_page(tmp_path)
    assert (found.question, found.answer, found.wanted) == ("What <is> it?\nSay.", "Red <b>.", "Red & wide.")
    assert Image.open(BytesIO(found.picture)).size == (20, 10)
    assert from_page(tmp_path / "none") is None
    (tmp_path / "samples.html").write_text("<article><p><b>user: text only</b></p></article>")
    assert from_page(tmp_path) is None


def test_losses_are_drawn_a_panel_for_each_stage():
    drawn = draw_losses([("stage 1", [(10, 2.0), (20, 1.0)], []), ("stage 2", [(5, 0.0)], [(5, 0.0)])])
    picture = Image.open(BytesIO(drawn))
    assert picture.size == (2 * 2 * WIDTH, 2 * HEIGHT)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16)}
    assert {(0x8A, 0x8A, 0x92), (0x2F, 0x6F, 0xB3), (255, 255, 255)} <= colours


# -- data sets --


def test_the_card_of_rows_counts_them(tmp_path):
    turns = messages_of([("Q", "A")])
    rows = [
        {"id": str(n), "images": [f"{name}.png"], "messages": turns, "kind": kind, "source": "s|t", "image_id": [name]}
        for n, (name, kind) in enumerate([("a", "detail"), ("a", "detail"), ("b", "")])
    ]
    write_rows(rows, tmp_path / "rows.parquet", row_features(embedded=False))
    path = tmp_path / "rows.parquet"
    card = data_card("ada/rows", path, data_files(path).uploads, "---\nlicense: mit\n---\n\nMine.\n")
    header = yaml.safe_load(card.split("---\n")[1])
    wanted = [{"split": "train", "path": ["data/train-00000-of-00001.parquet"]}]
    assert header["configs"] == [{"config_name": "default", "data_files": wanted}]
    assert (header["license"], header["task_categories"]) == ("mit", ["image-text-to-text"])
    assert "3 conversations about 2 pictures" in card
    assert "the pictures themselves are not part of this data set" in card
    assert "| detail | 2 |\n| unknown | 1 |" in card and "- sources: s\\|t\n- written by: unknown" in card
    assert card.endswith(f"{YOURS}\n\nMine.\n")
    again = data_card("ada/rows", path, data_files(path).uploads, card)
    assert again == card
    assert "- licence of this data set (also as" in data_card("ada/rows", path, data_files(path).uploads, "")
