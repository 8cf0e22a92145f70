"""docs/results.md: written by a script from what the benchmarks wrote, and nobody has typed into it since."""

import json
import re

from docs import results


def test_the_page_is_what_the_script_writes():
    assert results.PAGE.read_text(encoding="utf-8") == results.page(), "run `python -m docs.results`"


def test_every_result_is_on_a_page():
    on_other_pages = {"quickstart_seeds.json", "reproduce.json"}
    shown = {path.name for name in results.SECTIONS for path in results.RESULTS.glob(f"{name}*.json")}
    assert {path.name for path in results.RESULTS.glob("*.json")} == shown | on_other_pages


def test_a_figure_stands_beside_what_it_was_made_with(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    found = {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef",
        "uncommitted_changes": True,
        "versions": {"python": "3.11.7"},
        "hardware": "a box",
        "threads": 2,
        "arguments": {"seeds": 3, "device": "cpu", "out": "/tmp/somewhere", "case": None},
        "last_held_out_loss": {"trees": [0.5, 0.25]},
    }
    (tmp_path / "loss_curves.json").write_text(json.dumps(found))
    page = results.page()
    assert "| trees | 0.5000, 0.2500 |" in page
    assert "`python -m benchmarks.loss_curves --seeds 3 --out benchmarks/results`" in page
    assert "2026-01-02, a box, 2 threads, commit `0123456789` with changes; python 3.11.7." in page
    assert "## Training" not in page


def test_the_speed_that_the_readme_claims_was_measured():
    found = json.loads((results.RESULTS / "train_speed-cpu-7b-224.json").read_text(encoding="utf-8"))["results"]
    plain = {"checkpointing off", "checkpointing on", "each its default"}
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for case in found:
        for one in case["comparisons"]:
            if one["setting"] in plain:
                speeds[case["case"] == "captions5"] += one["speed_ratios"]
    words = " ".join((results.ROOT / "README.md").read_text(encoding="utf-8").split())
    claimed = re.search(
        r"On a CPU that is ([\d.]+) to ([\d.]+) times .* each picture ([\d.]+) to ([\d.]+) times", words
    )
    measured = (min(speeds[False]), max(speeds[False]), min(speeds[True]), max(speeds[True]))
    assert claimed.groups() == tuple(f"{one:.1f}" for one in measured)
    told = (results.ROOT / "docs/trees.md").read_text(encoding="utf-8")
    off = [
        one["speed_ratios"] for case in found for one in case["comparisons"] if one["setting"] == "checkpointing off"
    ]
    wanted = tuple(f"{ratios[0]:.1f}" for ratios in off[:2])
    assert re.search(r"on a CPU, ([\d.]+) times .* and ([\d.]+) times with five", told).groups() == wanted
