"""docs/results.md: written by a script from what the benchmarks wrote, and nobody has typed into it since."""

import json

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
