"""A teacher that writes from captions as a good model would, and a small COCO folder to write about.

with TeacherServer(faults=[{"match": "a red circle", "times": 1, **says("I'm sorry.")}]) as server:
    ... server.url ... server.stats()["total"] ...
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.openai_server import FakeServer, Server


SHAPES = ("circle", "square")
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")
SIDE = 60


def says(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """A fault that puts other words in the teacher's mouth."""
    message = {"role": "assistant", "content": text}
    return {"patch": {"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}}


class Writer(Server):
    """`refuse`: about contexts with these words it has nothing to say, in batches either."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.refuse = settings.get("refuse")

    def complete(self, body: dict) -> dict:
        answer = super().complete(body)
        refused = self.refuse and self.refuse in body["messages"][-1]["content"]
        answer["choices"][0]["message"]["content"] = "I'm sorry." if refused else write(body["messages"])
        return answer


def write(messages: list[dict[str, str]]) -> str:
    """In the form of the examples: blocks, or the answer alone."""
    caption = messages[-1]["content"].split("\n")[0].rstrip(".")
    example = messages[2]["content"]
    if "Question:" not in example:
        return f"In the picture there is {caption.lower()}. Nothing else can be seen, the rest is plain."
    questions = ["What can be seen here?", "Is there more in the picture?"][: example.count("Question:")]
    answers = [f"There is {caption.lower()}, as far as one can tell.", f"Nothing beside {caption.lower()}."]
    blocks = [f"Question:\n{q}\n===\nAnswer:\n{a}" for q, a in zip(questions, answers, strict=False)]
    return "\n===\n".join(blocks)


class TeacherServer(FakeServer):
    def __enter__(self) -> "TeacherServer":
        command = [sys.executable, "-m", "tests.teaching", json.dumps(self._settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
        self.root = self._process.stdout.readline().strip()
        self.url = f"{self.root}/v1"
        return self


def draw_coco(folder: Path, count: int = 12) -> list[str]:
    """`captions.json`, `instances.json` and `pictures/`; the flags of `llava generate` that name them."""
    pick = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    images, captions, instances = [], [], []
    for number in range(count):
        shape, colour = SHAPES[number % 2], COLOURS[number % 6]
        x, y, size = pick.randrange(30), pick.randrange(30), pick.randrange(12, 28)
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "circle" else draw.rectangle)([x, y, x + size, y + size], fill=colour)
        name = f"{number:012d}.png"
        picture.save(folder / "pictures" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for words in (f"A {colour} {shape} number {number} on white paper.", f"A {shape} of size {size}."):
            captions.append({"id": len(captions), "image_id": number, "caption": words})
        box = {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [x, y, size, size]}
        instances.append(box | {"iscrowd": 0})
    categories = [{"id": 1 + number, "name": name} for number, name in enumerate(SHAPES)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories})
    )
    flags = ["--source", "coco", "--image-root", f"{folder / 'pictures'}"]
    return [*flags, "--captions", f"{folder / 'captions.json'}", "--instances", f"{folder / 'instances.json'}"]


async def main(settings: dict[str, Any]) -> None:
    server = await asyncio.start_server(Writer(settings).serve, "127.0.0.1", 0, limit=2**22, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads)
    asyncio.run(main(parser.parse_args().settings))
