"""The benchmark of generation runs all sides and checks their answers; how fast they are is not for tests to say."""

import json

import pytest
from PIL import Image

from benchmarks import generate_speed
from benchmarks.generate_speed import Meter


def test_the_benchmark_of_generation_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate_speed, "GOAL_AT", 8)
    words = ["--in-flight", "4", "8", "--latency", "0.05", "--waves", "1", "--rounds", "1", "--out", str(tmp_path)]
    generate_speed.main(words)
    written = json.loads((tmp_path / "generate_speed.json").read_text())
    assert [one["in_flight"] for one in written["results"]] == [4, 8]
    for one in written["results"]:
        assert all(one["requests_per_s"][side][0] > 0 < one["cpu_ms_per_request"][side][0] for side in ASKED)
        assert one["speed_ratio"]["sdk"] == one["requests_per_s"]["ours"][0] / one["requests_per_s"]["sdk"][0]
    assert [one["goal"] for one in written["results"]] == [None, 0.9]
    assert written["versions"]["openai"] and written["commit"]
    assert "| 8 |" in capsys.readouterr().out
    with Image.open(tmp_path / "generate_speed.png") as picture:
        assert picture.width == 1200 and len(picture.getcolors(100_000)) > 3


ASKED = ("sdk", "post", "ours")


def test_a_wrong_answer_is_no_measurement():
    generate_speed.check("answer to q7 word", 7)
    with pytest.raises(ValueError, match="wrong answer to q7"):
        generate_speed.check("answer to q70 word", 7)


def test_the_meter_counts_the_steady_state(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(generate_speed.time, "perf_counter", lambda: next(clock) * 0.5)
    monkeypatch.setattr(generate_speed.time, "process_time", lambda: 0.0)
    meter = Meter(4)
    for _ in range(14):
        meter.answered()
    assert meter.figures() == (2.0, 0.0)  # ten answers in five seconds
