"""The whole method on two CPU cores, without network, key or GPU: data, both stages, an examination, a page.

    llava quickstart

Drawn scenes stand for photographs, a teacher of rules for GPT-4, two small pretrained halves (`recipes/micro/halves`)
for CLIP and Vicuna. The rest is what a full-size run does, by the same commands, which are printed. A phase leaves its
result in the folder and is skipped where that is: started again, it goes on where it stopped.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from data_generation.microworld.scene import scenes
from data_generation.microworld.source import annotated
from data_generation.replacing import write_atomically
from data_generation.sources import AnnotatedImage
from recipes.micro.exam import examine
from recipes.micro.page import write_page
from recipes.micro.results import write_results
from recipes.run_folder import alone_in
from recipes.training.checkpoints import FINISHED


MICRO = Path(__file__).parent / "micro"
SETTINGS, SECONDS, RESULTS, PAGE = "settings.json", "seconds.json", "results.json", "index.html"
ACCELERATE = Path(__file__).parent / "accelerate/ddp.yaml"
PROCESSES = 2  # that the recipes' batches are for
STOPPED = (130, -signal.SIGINT, 143, -signal.SIGTERM)


@dataclass(frozen=True)
class Size:
    """How much there is of everything; `flags` go to both trainings."""

    scenes: int
    captioned: int
    per_kind: int
    dialogues: int
    flags: tuple[str, ...] = ()


FULL = Size(scenes=6500, captioned=2400, per_kind=300, dialogues=200)
TINY = Size(scenes=40, captioned=40, per_kind=3, dialogues=3, flags=("--max_steps", "4", "--logging_steps", "1"))


class Quickstart:
    """The phases of a run in `folder`, each with what it leaves there."""

    def __init__(self, folder: Path, size: Size, seed: int):
        self.folder, self.size, self.seed = folder, size, seed

    def phases(self) -> list[tuple[str, str, Path, Callable[[], None]]]:
        at = self.folder
        return [
            ("world", "pictures with captions and boxes are drawn", at / "world/scenes.jsonl", self.draw),
            ("captions", "captions become data of stage 1", at / "captions.parquet", self.pair),
            (
                "generate",
                "a teacher that sees no picture writes instructions",
                at / "instruct/README.md",
                self.generate,
            ),
            ("build", "tower, new projector, language model", at / "start/model.safetensors", self.build),
            ("stage1", "the projector learns", at / "stage1" / FINISHED, self.pretrain),
            ("stage2", "projector and language model learn", at / "stage2" / FINISHED, self.finetune),
            ("exam", "held-out questions, answered freely", at / "exam/finished.json", self.exam),
            ("page", "what came out", at / PAGE, self.show),
        ]

    def run(self) -> None:
        with alone_in(self.folder, True, "--out"):
            self._run()

    def _run(self) -> None:
        self._check_settings()
        phases = self.phases()
        for number, (name, what, result, do) in enumerate(phases, 1):
            print(f"\n[{number}/{len(phases)}] {name}: {what}", flush=True)
            if result.exists() and name != "page":
                print(f"{result} is there already")
                continue
            started = time.time()
            try:
                do()
            finally:
                self._add_seconds(name, time.time() - started)

    def draw(self) -> None:
        """As somebody's own pictures might lie there: files, and a line of JSON about each."""
        world = self.folder / "world"
        (world / "pictures").mkdir(parents=True, exist_ok=True)
        lines, pairs = [], []
        found = scenes("train", self.size.scenes, self.seed)
        for number, scene in enumerate(tqdm(found, total=self.size.scenes, desc="drawing", disable=None)):
            image = annotated(scene)
            name = f"pictures/{image.id}.png"
            (world / name).write_bytes(image.image)
            lines.append(json.dumps(_line(image, name)))
            if number < self.size.captioned:
                pairs += [json.dumps({"image": name, "caption": caption}) for caption in image.captions]
        write_atomically(world / "pairs.jsonl", "\n".join(pairs) + "\n")
        write_atomically(world / "scenes.jsonl", "\n".join(lines) + "\n")

    def pair(self) -> None:
        world = self.folder / "world"
        files = [
            str(world / "pairs.jsonl"),
            "--image-root",
            str(world),
            "--out",
            str(self.folder / "captions.parquet"),
        ]
        llava("captions", *files, "--concepts", "none", "--seed", str(self.seed))

    def generate(self) -> None:
        with teacher(self.seed) as url:
            source = ["--source", "jsonl", "--data", str(self.folder / "world/scenes.jsonl"), "--images", "paths"]
            # The world's scenes are alike, and so is what is said of them: that is no fault here.
            source += ["--source-name", "microworld", "--duplicates", "keep"]
            # The ledger knows the server by this name, as its address is another one each time.
            server = ["--base-url", url, "--server", "micro-teacher", "--model", "microworld"]
            llava("generate", *source, *server, "--seed", str(self.seed), "--out", str(self.folder / "instruct"))

    def build(self) -> None:
        build(self.folder / "start", self.seed)

    def pretrain(self) -> None:
        self.train("pretrain", "start", "captions.parquet", "stage1")

    def finetune(self) -> None:
        self.train("finetune", "stage1", "instruct", "stage2")

    def train(self, stage: str, start: str, data: str, out: str) -> None:
        at = self.folder
        words = training(stage, at / start, at / data, at / "world", at / out, self.seed) + [*self.size.flags]
        if num_cores() == 1:
            return llava("train", *words, "--gradient_accumulation_steps", str(PROCESSES))
        # Threads of one process gain nothing with matrices this small.
        launch = ["--config_file", str(ACCELERATE), "--mixed_precision", "no", "--num_processes", str(PROCESSES)]
        run("accelerate", "launch", *launch, "--main_process_port", "0", "-m", "recipes.train", *words)

    def exam(self) -> None:
        examine(self.folder, self.size.per_kind, self.size.dialogues)

    def show(self) -> None:
        results = write_results(self.folder, self.folder / RESULTS)
        write_page(self.folder, results, self.folder / PAGE)

    def _check_settings(self) -> None:
        """A folder belongs to one size and seed."""
        settings = {"seed": self.seed, "tiny": self.size == TINY}
        path = self.folder / SETTINGS
        if path.exists() and (found := json.loads(path.read_text())) != settings:
            raise ValueError(
                f"`{self.folder}` holds a quickstart with {found}, and this one has {settings}. Take another --out, "
                "or delete the folder."
            )
        write_atomically(path, json.dumps(settings))

    def _add_seconds(self, phase: str, seconds: float) -> None:
        path = self.folder / SECONDS
        found = json.loads(path.read_text()) if path.exists() else {}
        write_atomically(path, json.dumps(found | {phase: round(found.get(phase, 0) + seconds, 1)}))


def _line(image: AnnotatedImage, name: str) -> dict:
    boxes = [{"label": box.label, "box": [box.x1, box.y1, box.x2, box.y2]} for box in image.boxes]
    return {"id": image.id, "image": name, "captions": image.captions, "boxes": boxes} | {
        "width": image.width,
        "height": image.height,
    }


def build(out: Path, seed: int, *flags: str, language: Path = MICRO / "halves/language") -> None:
    """Joins the halves; `flags` win over what the quickstart has."""
    halves = ["--vision", str(MICRO / "halves/vision"), "--language", str(language)]
    kind = ["--projector", "mlp", "--system", "", "--aspect", "square", "--dtype", "float32", "--seed", str(seed)]
    llava("build", *halves, *kind, *flags, "--out", str(out))


def training(stage: str, start: Path, data: Path, image_root: Path, out: Path, seed: int) -> list[str]:
    files = ["--model_name_or_path", str(start), "--data", str(data), "--image_root", str(image_root)]
    return ["--config", str(MICRO / f"{stage}.yaml"), *files, "--output_dir", str(out), "--seed", str(seed)]


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def llava(*words: str) -> None:
    run("llava", *words)


def run(program: str, *words: str) -> None:
    """Runs a command as a person would, in a process of its own, and waits for it to end in its own way."""
    print("$", shlex.join([program, *words]), flush=True)
    module = {"llava": "recipes.cli", "accelerate": "accelerate.commands.accelerate_cli"}[program]
    process = subprocess.Popen([sys.executable, "-m", module, *words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    signals: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        signals.append(number)
        # Ctrl-C has reached it, too; it saves what it has.
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A launcher whose processes were stopped has a code of its own.
    if code in STOPPED or (code and signals):
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"`{program} {words[0]}` ended with {code}; what it said stands above.")


@contextmanager
def teacher(seed: int) -> Iterator[str]:
    """The address of a local teacher; Ctrl-C does not reach it, so that answers under way come in."""
    command = [sys.executable, "-m", "recipes.cli", "teacher", "--port", "0", "--seed", str(seed)]
    os.environ.setdefault("OPENAI_API_KEY", "none-needed")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        line = process.stdout.readline()
        if "http" not in line:
            raise ValueError("The local teacher did not start; what it said stands above.")
        print(line.strip(), flush=True)
        yield next(word for word in line.split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava quickstart", description="The whole method in miniature, on a CPU.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of world, teacher and training (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="every phase for a moment, to see that it runs")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    Quickstart(args.out, TINY if args.tiny else FULL, args.seed).run()


if __name__ == "__main__":
    main()
