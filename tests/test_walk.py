"""docs/own-data.md, block by block as it stands, in one folder: from twenty pictures to a model that stock
transformers loads. Two things are changed: the teacher's port, and the Hub's address.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_generation.microworld.draw import boxes, draw
from data_generation.microworld.scene import scenes
from data_generation.microworld.source import captions_of
from recipes.training.train_data import load_rows
from tests.hub_server import HubServer
from tests.test_readme import fences
from tests.test_stock import BLOCK


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
SIDE = 96
ADDRESS = "http://127.0.0.1:8010/v1"
pytestmark = pytest.mark.slow


def draw_photos(folder: Path) -> None:
    """What the page says one has: files in the form of its JSON blocks."""
    coco, shapes = {"images": [], "annotations": []}, {"images": [], "annotations": [], "categories": []}
    ids: dict[str, int] = {}
    held_out = []
    (folder / "photos").mkdir()
    for number, scene in enumerate(scenes("train", 20)):
        name = f"{number}.png"
        draw(scene, SIDE).save(folder / "photos" / name)
        if number >= 15:
            found = [{"label": b.label, "box": [b.x1, b.y1, b.x2, b.y2]} for b in boxes(scene)]
            line = {"id": str(number), "image": f"photos/{name}", "captions": list(captions_of(scene)), "boxes": found}
            held_out.append(json.dumps(line) + "\n")
            continue
        image = {"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE}
        coco["images"].append(image)
        shapes["images"].append(image)
        for caption in captions_of(scene):
            coco["annotations"].append({"id": len(coco["annotations"]), "image_id": image["id"], "caption": caption})
        for box in boxes(scene):
            category = ids.setdefault(box.label, len(ids) + 1)
            corner = [SIDE * value for value in (box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1)]
            shapes["annotations"].append(
                {"id": len(shapes["annotations"]), "image_id": image["id"], "category_id": category, "bbox": corner}
                | {"iscrowd": 0}
            )
    shapes["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    (folder / "captions.json").write_text(json.dumps(coco))
    (folder / "instances.json").write_text(json.dumps(shapes))
    (folder / "held-out.jsonl").write_text("".join(held_out))
    (folder / "recipes").symlink_to(ROOT / "recipes")


def same_form(shown: dict, file: dict) -> bool:
    """The keys of a JSON block of the page are those of the file, down to the first element of every list."""
    if isinstance(shown, dict):
        return shown.keys() == file.keys() and all(same_form(shown[key], file[key]) for key in shown)
    if isinstance(shown, list):
        return isinstance(file, list) and same_form(shown[0], file[0])
    return isinstance(shown, str) == isinstance(file, str)


def visited(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """The page, as a browser would get it; where gradio is missing, what is said then."""
    demo = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        if find_spec("gradio") is None:
            return demo.communicate(timeout=300)[1]
        address = demo.stdout.readline().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=60) as page:
            return page.read().decode()
    finally:
        demo.terminate()
        demo.communicate()


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder after the last block, what each block said, and the Hub."""
    folder = tmp_path_factory.mktemp("walk")
    draw_photos(folder)
    said = []
    with HubServer() as hub:
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OPENAI_BASE_URL")}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        environment |= {
            "HF_DATASETS_OFFLINE": "0",
            "HF_TOKEN": "writer",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        teacher, address = None, ADDRESS
        try:
            for language, text in fences(PAGE):
                if language == "yaml":
                    name = re.match(r"# (\S+\.yaml)\n", text)[1]
                    (folder / name).write_text(text)
                elif text.startswith("llava teacher"):
                    command = text.replace("8010", "0").split()
                    teacher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder)
                    address = next(word for word in teacher.stdout.readline().split() if word.startswith("http"))
                elif text.startswith("llava demo"):
                    said.append((text, visited(text.split(), environment, folder)))
                elif language in ("bash", "python"):
                    is_last = "from transformers" in text  # where this project is not installed
                    code = ["bash", "-e", "-c", text] if language == "bash" else [sys.executable, "-c"]
                    code += [BLOCK * is_last + text] if language == "python" else []
                    code = [word.replace(ADDRESS, address) for word in code]
                    done = subprocess.run(code, cwd=folder, env=environment, capture_output=True, text=True)
                    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
                    said.append((text, done.stdout))
        finally:
            if teacher is not None:
                teacher.terminate()
                teacher.wait()
        yield folder, said, hub


def test_what_the_page_shows_is_what_it_needs(tmp_path):
    draw_photos(tmp_path)
    shown = [json.loads(text) for language, text in fences(PAGE) if language == "json"]
    files = [json.loads((tmp_path / name).read_text()) for name in ("captions.json", "instances.json")]
    files.append(json.loads((tmp_path / "held-out.jsonl").read_text().splitlines()[0]))
    assert [same_form(*pair) for pair in zip(shown, files, strict=True)] == [True] * 3


def test_every_step_leaves_what_the_next_one_takes(walked):
    folder, said, hub = walked
    assert len(load_rows(str(folder / "data/instruct"))) > 30
    assert len(load_rows(str(folder / "data/captions.parquet"), str(folder / "photos"))) == 75
    samples = (folder / "checkpoints/stage2-lora/samples.html").read_text()
    assert "data:image/png;base64," in samples or "<img" in samples
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len({answer["metadata"]["checkpoint"] for answer in answers}) == 1
    assert {answer["question_id"].split("#")[0] for answer in answers} == set(
        load_rows(str(folder / "data/held-out"))["id"]
    )
    score = json.loads((folder / "runs/judge/results.json").read_text())["candidates"]["answers"]["scores"]["all"]
    assert score["questions"] == len(answers) and 0 < score["score"] <= 120
    assert (folder / "runs/judge/report.html").is_file() and (folder / "data/instruct/report.html").is_file()


def test_what_is_tried_is_what_is_sent(walked):
    folder, said, hub = walked
    tried, sent = [out for text, out in said if "llava push model" in text]
    assert "model.safetensors" in tried and "relative score" in tried.lower() and "nothing has been sent" in tried
    model, rows = hub.repos["model", "ada/llava-mine"], hub.repos["dataset", "ada/instruct"]
    assert len(model.commits) == len(rows.commits) == 1
    assert model.files["model.safetensors"] == (folder / "checkpoints/stage2/model.safetensors").read_bytes()
    assert "relative score" in model.files["README.md"].decode() and "README.md" in rows.files
    assert hub.url in sent


def test_the_demo_opens_or_says_what_is_missing(walked):
    _, said, _ = walked
    (shown,) = [out for text, out in said if text.startswith("llava demo")]
    missing = 'llava demo: error: `llava demo` needs gradio, which is not installed: pip install -e ".[demo]".'
    assert ("<gradio-app>" in shown or "gradio" in shown) if find_spec("gradio") else missing in shown


def test_stock_transformers_answers_where_this_project_is_not(walked):
    folder, said, _ = walked
    asked, said_there = said[-1]
    row, answer = said_there.strip().split("\n", 1)
    assert "from transformers" in asked and answer.strip()
    (chatted,) = [out for text, out in said if "llava chat" in text]
    assert chatted.strip() == answer.strip()
    assert row == str(load_rows(str(folder / "data/instruct"))[0]["messages"])
