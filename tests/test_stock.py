"""What we save works without us: in a process that cannot import this project, in a pipeline, behind a server."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch
from PIL import Image

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from tests import tiny_text


PLAIN_QUESTION = "What is this?"
# Put before any script: from here on this project does not exist for the process.
BLOCK = """
import sys
for name in ("modeling_llava", "processing", "recipes", "data_generation", "tests"):
    sys.modules[name] = None
"""
SCRIPT = """
import json, sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
directory, picture, question = sys.argv[1:]
try:
    import modeling_llava
    raise SystemExit("the project can be imported")
except ImportError:
    pass
processor = AutoProcessor.from_pretrained(directory)
model = AutoModelForImageTextToText.from_pretrained(directory)
chat = [{"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": question}]}]
inputs = processor.apply_chat_template(
    chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
with torch.no_grad():
    logits = model(**inputs).logits
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
text = processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
ask = pipeline("image-text-to-text", model=directory)
piped = ask(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": 8, "do_sample": False})
print(json.dumps({
    "class": f"{type(model).__module__}.{type(model).__name__}",
    "ids": inputs["input_ids"][0].tolist(),
    "logits": logits[0, -1].tolist(),
    "text": text,
    "piped": piped[0]["generated_text"],
}))
"""


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (50, 30), "red").save(path)
    return path


def run_without_project(*arguments: str, cwd: Path) -> dict:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + SCRIPT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "tower, language, kind, template, projector",
    [
        ("clip", "llama", "llama", "vicuna_v1", "mlp"),
        ("siglip", "qwen2", "qwen", "chatml", "linear"),
    ],
)
def test_a_saved_directory_gives_the_same_without_this_project(
    tmp_path, picture, tower, language, kind, template, projector
):
    directory = tmp_path / "checkpoint"
    tiny_text.checkpoint(directory, tower, language, kind, template=template, projector=projector)
    stock = run_without_project(str(directory), str(picture), PLAIN_QUESTION, cwd=tmp_path)
    assert stock["class"] == "transformers.models.llava.modeling_llava.LlavaForConditionalGeneration"

    processor = LlavaProcessor.from_pretrained(directory)
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PLAIN_QUESTION}]}]
    inputs = processor.encode(chat, [picture])
    assert inputs["input_ids"][0].tolist() == stock["ids"]
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    # not bit for bit: another process may sum in another order (threads, where its memory lies)
    torch.testing.assert_close(logits, torch.tensor(stock["logits"]), atol=1e-5, rtol=0)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == stock["text"] == stock["piped"]


@contextmanager
def serving(directory: Path, log: Path):
    """`transformers serve` of a directory, in a process without this project, until it answers /health."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = BLOCK + "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(directory), "--port", str(port), "--device", "cpu"]
    with open(log, "w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=directory.parent)
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_transformers_serve_answers_an_openai_client(tmp_path, picture):
    directory = tmp_path / "checkpoint"
    tiny_text.checkpoint(directory)
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PLAIN_QUESTION}]
    with serving(directory, tmp_path / "serve.log") as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
        reply = client.chat.completions.create(
            model=str(directory), messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0
        )
    answer = reply.choices[0].message.content

    processor = LlavaProcessor.from_pretrained(directory)
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PLAIN_QUESTION}]}]
    inputs = processor.encode(chat, [Image.open(io.BytesIO(picture.read_bytes()))])
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert answer == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
