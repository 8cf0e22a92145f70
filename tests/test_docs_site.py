"""docs/ as a site: it builds without a warning, every link leads somewhere, nothing is fetched, and what
scripts write is as they would write it now.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from trl import ModelConfig

from docs import reference, trees
from recipes.training.train_config import TrainConfig
from tests import training
from tests.test_readme import ROOT, command_problems, fences


SCALING = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


@dataclass
class Page(HTMLParser):
    """What a page has: names to go to, links, and what a browser would load."""

    names: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.names |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found.get("href") or "")
        elif tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loaded.append(found["src"])


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


def link_problems(site: Path) -> Iterator[str]:
    pages = {path: read(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, for any depth
            continue
        where = path.relative_to(site)
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded:
                    yield f"{where} loads {target}"
                continue
            place = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            place = place / "index.html" if place.is_dir() else place
            if not place.is_file():
                yield f"{where}: no file {target}"
            elif parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].names:
                yield f"{where}: no place {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]" -c constraints.txt')
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


def test_bad_links_are_found(tmp_path):
    tmp_path = tmp_path.resolve()
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html">x</a><a href="#top">x</a><a href="#bottom">x</a><a href="a.html#no">x</a>'
        '<a href="https://elsewhere.org">x</a><script src="https://elsewhere.org/x.js"></script><img src="c.png">'
    )
    assert list(link_problems(tmp_path)) == [
        "a.html: no file b.html",
        "a.html: no place #bottom",
        "a.html: no place a.html#no",
        "a.html loads https://elsewhere.org/x.js",
        "a.html: no file c.png",
    ]


def test_every_link_leads_somewhere(site):
    assert list(link_problems(site)) == []


def test_every_page_is_in_the_navigation(site):
    front = read((site / "index.html").read_text(encoding="utf-8"))
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert pages and pages <= set(front.links)


def test_bars_in_the_code_of_tables_are_shown_as_such(site):
    for name, words in {"templates": "&lt;|im_end|&gt;", "reference": "--projector linear|mlp"}.items():
        html = (site / f"{name}.html").read_text(encoding="utf-8")
        assert f"<code>{words}</code>" in html and r"\|" not in "".join(re.findall(r"<td.*?</td>", html, re.DOTALL))


def test_nothing_but_pages_and_pictures_is_published(site):
    assert not list(site.rglob("*.py"))
    assert (site / "index.html").read_text(encoding="utf-8").count("<h1") == 1


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "recipes/README.md"]
)
def test_links_work_on_a_plain_host_too(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("module, written", [(reference, reference.page), (trees, trees.drawing)])
def test_what_a_script_wrote_is_what_it_writes(module, written):
    assert module.PAGE.read_text(encoding="utf-8") == written(), f"run `python -m {module.__name__}`"


def test_the_tables_of_a_parser_hold_no_loose_bar():
    for line in reference.page().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line


def test_the_speed_of_the_page_is_what_was_measured():
    page = (ROOT / "docs/trees.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks/results/train_speed-cpu-7b-224.json").read_text())["results"]
    speed = {one["case"]: one["comparisons"][0]["speed_ratios"][0] for one in results}
    words = f"{speed['stage1']:.1f} times the speed where nothing is shared, and {speed['captions5']:.1f} times"
    assert words in " ".join(page.split())


def test_yaml_blocks_have_fields_that_there_are():
    known = {*TrainConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    blocks = [
        text
        for path in (ROOT / "docs").glob("*.md")
        for language, text in fences(path.read_text())
        if language == "yaml"
    ]
    assert len(blocks) >= 5
    assert {name for text in blocks for name in yaml.safe_load(text)} <= known


def job() -> str:
    (script,) = [text for language, text in fences(SCALING) if "#SBATCH" in text]
    return script


def test_the_slurm_script_is_sound(tmp_path):
    script = tmp_path / "train.sbatch"
    script.write_text(job())
    assert script.read_text().startswith("#!")
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    launch = shlex.split(re.search(r"^srun (.*)", job(), re.MULTILINE | re.DOTALL)[1])[2]
    assert command_problems(" ".join(launch.replace("\\\n", " ").split()), ROOT) == []


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines(tmp_path):
    """`srun` and `scontrol` are stood in for: the two machines are two processes of this one."""
    training.write_data_and_start(tmp_path)
    config = training.write_yaml(tmp_path / "run.yaml", data=[str(tmp_path / "data.jsonl")])
    (tmp_path / "train.sbatch").write_text(job())
    programs = {
        "scontrol": "echo 127.0.0.1; echo 127.0.0.1",
        "srun": 'for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" & jobs="${jobs:-} $!"; done; '
        'for one in $jobs; do wait "$one"; done',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\nset -e\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    launcher = yaml.safe_load((ROOT / "recipes/accelerate/ddp.yaml").read_text()) | {"mixed_precision": "no"}
    (tmp_path / "ddp.yaml").write_text(yaml.safe_dump(launcher))
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": str(os.getpid())}
    environment |= {"GPUS": "1", "CONFIG": str(config), "LAUNCHER": "ddp.yaml", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "train.sbatch"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"processes": 2' in (tmp_path / "out/training.json").read_text()
