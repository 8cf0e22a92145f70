"""Image-caption pairs: noun phrases, the balanced filter, and rows of the first stage."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import captions as benchmark
from data_generation import concepts, phrases
from data_generation.concepts import PhraseIndex, balance, extract_phrases
from data_generation.frequency_plot import draw_frequencies
from data_generation.phrases import make_extractor
from data_generation.prompting import load_questions
from data_generation.rows import read_rows
from recipes import captions
from recipes.training.train_data import load_rows
from tests.conversations import png


# Captions with the phrases a reader finds in them.
READ = {
    "A man in a blue shirt is riding 2 brown horses on a sandy beach.": "man, blue shirt, brown horse, sandy beach",
    "people walking along the promenade at sunset": "person, promenade, sunset",
    "vector illustration of a cartoon cat holding a flower": "vector illustration, cartoon cat, flower",
    "A black and white photo of several parked cars": "black and white photo, parked car",
    "the dog's bowl stands next to an old wooden door": "dog, bowl, old wooden door",
    "3 kids and their teacher in front of a red-brick school": "kid, teacher, front, red-brick school",
    "actor attends the premiere of the film": "actor, premiere, film",
    "a very tall tree": "tall tree",
    "people riding horses": "person, horse",
    "she is happy": "",
    "Snow!": "snow",
}


def f1(extractor):
    found = make_extractor(extractor)(list(READ))
    pairs = [(set(phrases), set(text.split(", ")) - {""}) for phrases, text in zip(found, READ.values(), strict=True)]
    right = sum(len(ours & theirs) for ours, theirs in pairs)
    return 2 * right / sum(len(ours) + len(theirs) for ours, theirs in pairs)


def test_textblob_finds_phrases():
    pytest.importorskip("textblob")
    assert f1("textblob") >= 0.97


def test_the_rule_without_a_library_finds_most_phrases():
    assert f1("stopwords") >= 0.7
    assert make_extractor("stopwords")(["Buses, glasses and cities: a bus."]) == [["buse", "glass", "city", "bus"]]


@pytest.mark.parametrize("extractor", ["textblob", "stopwords"])
def test_odd_captions_have_phrases_or_none(extractor):
    if extractor == "textblob":
        pytest.importorskip("textblob")
    odd = ["", "...", "\t\n", "猫が寝ている", "a\tb", "1 2 3", "'s", "é" * 1000, "a cat and a cat"]
    found = make_extractor(extractor)(odd)
    assert len(found) == len(odd)
    assert found[-1] == ["cat"]
    assert not any("\t" in phrase or "\n" in phrase or not phrase for one in found for phrase in one)


def test_spacy_is_asked_for_chunks_and_its_faults_are_named(monkeypatch):
    word = lambda text, pos, lemma=None: SimpleNamespace(lower_=text, pos_=pos, lemma_=lemma or text)  # noqa: E731
    chunks = [[word("two", "NUM"), word("red", "ADJ"), word("buses", "NOUN", "bus")], [word("it", "PRON")]]
    nlp = SimpleNamespace(pipe_names=["tagger", "parser"])
    nlp.pipe = lambda texts, batch_size: [SimpleNamespace(noun_chunks=chunks) for _ in texts]
    spacy = ModuleType("spacy")
    spacy.load = lambda model, exclude: {"good": nlp, "blank": SimpleNamespace(pipe_names=[])}[model]
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    assert make_extractor("spacy:good")(["x", "y"]) == [["red bus"]] * 2
    with pytest.raises(ValueError, match="`blank` has no parser"):
        make_extractor("spacy:blank")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match="`spacy` cannot be imported"):
        make_extractor("spacy:good")
    with pytest.raises(ValueError, match="`nltk` is no extractor"):
        make_extractor("nltk")


def test_a_missing_library_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(ValueError, match=r"visual-instruction-tuning\[concepts\]"):
        make_extractor("textblob")
    monkeypatch.setattr(phrases, "version", lambda name: "1.0")
    assert phrases.describe_extractor("spacy:m") == "spacy:m 1.0"


def test_workers_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(concepts, "CHUNK", 7)
    texts = [f"a cat number{n} and dogs" if n % 3 else "" for n in range(200)]
    alone = list(extract_phrases(texts, "stopwords"))
    assert list(extract_phrases(texts, "stopwords", num_proc=2)) == alone
    assert alone[1] == ["cat number1", "dog"] and alone[0] == []
    with pytest.raises(ValueError, match="is no extractor"):
        list(extract_phrases(texts, "nltk", num_proc=2))


def test_workers_read_ahead_only_a_little(monkeypatch):
    monkeypatch.setattr(concepts, "CHUNK", 10)
    read = []
    stream = extract_phrases((read.append(n) or "a cat" for n in range(10_000)), "stopwords", num_proc=2)
    next(stream)
    assert len(read) <= 10 * (concepts.WINDOW * 2 + 1)
    stream.close()


def test_rare_phrases_bring_all_and_frequent_ones_some():
    rare, common = [["rare", "common"]] * 40, [["common"]] * 500
    index = PhraseIndex([*rare, *common, ["twice"], ["twice"], [], ["common", "twice-common", "common"]])
    assert index.frequencies().tolist() == [40, 541, 2, 1]
    chosen = balance(index, minimum=3, most=100)
    assert chosen[:40].all()
    assert chosen.sum() == 100  # 60 more for the common one
    assert not chosen[540:543].any()
    assert index.frequencies(chosen).tolist()[:3] == [40, 100, 0]
    assert balance(index, minimum=2, most=100)[540:542].all()
    assert balance(index, minimum=1, most=1000).sum() == 543


def test_a_phrase_that_rarer_ones_have_filled_gets_no_more():
    index = PhraseIndex([[f"rare {n // 50}", "common"] for n in range(200)] + [["common"]] * 100)
    chosen = balance(index, minimum=3, most=100)
    assert chosen[:200].all() and not chosen[200:].any()


def test_the_choice_depends_on_the_seed_alone():
    index = PhraseIndex([["a"]] * 1000 + [["b"]] * 1000)
    first = balance(index, seed=1)
    assert (first == balance(index, seed=1)).all()
    assert (first != balance(index, seed=2)).any()
    assert [first[:1000].sum(), first[1000:].sum()] == [100, 100]
    assert first[:500].sum() not in (0, 100)


def test_every_phrase_keeps_at_least_its_share():
    rng = np.random.default_rng(0)
    captions_of = [[f"p{p}" for p in set((rng.zipf(1.3, 4) % 500).tolist())] for _ in range(5000)]
    index = PhraseIndex(captions_of)
    before = index.frequencies()
    after = index.frequencies(balance(index, 3, 20))
    enough = before >= 3
    assert (after[enough] >= np.minimum(before[enough], 20)).all()
    assert after.sum() < 0.7 * before.sum()


def test_an_empty_index_chooses_nothing():
    assert balance(PhraseIndex([])).tolist() == []
    assert balance(PhraseIndex([[], []])).tolist() == [False, False]


@pytest.mark.parametrize("before, after", [([5, 300, 1], [5, 100, 0]), ([1], [0]), ([], []), ([7] * 50, [9])])
def test_the_plot_is_drawn(tmp_path, before, after):
    path = tmp_path / "x.png"
    draw_frequencies(np.array(before, int), np.array(after, int), 100, "Title", path)
    with Image.open(path) as picture:
        legend, curves = picture.crop((0, 0, 1200, 66)), picture.crop((0, 66, 1200, 700))
    drawn = [{colour for _, colour in part.getcolors(1 << 20)} for part in (legend, curves)]
    gold, blue = (201, 162, 39), (59, 110, 168)
    assert {gold, blue} <= drawn[0]
    assert (gold in drawn[1], blue in drawn[1]) == (any(before), any(after))


PAIRS = [{"name": f"n{n}", "file": f"{n}.png", "text": text} for n, text in enumerate(["A cat."] * 9 + ["A dog."] * 4)]


def write_pairs(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\r\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".parquet"])
def test_pairs_become_balanced_rows(tmp_path, capsys, suffix):
    data = write_pairs(tmp_path / f"pairs{suffix}", PAIRS)
    command = [data, "--caption", "text", "--image", "file", "--id", "name", "--out", f"{tmp_path}/out.parquet"]
    captions.main([*command, "--concepts", "stopwords", "--max-captions", "5", "--num-proc", "1", "--source", "mine"])
    rows = list(read_rows(tmp_path / "out.parquet"))
    assert [int(row["id"][1:]) for row in rows] == sorted(int(row["id"][1:]) for row in rows)
    texts = [row["messages"][1]["content"][0]["text"] for row in rows]
    assert (texts.count("A cat."), texts.count("A dog.")) == (5, 4)
    for row in rows:
        place, question = row["messages"][0]["content"]
        assert place["type"] == "image" and question["text"] in load_questions("brief")
        assert row["images"] == row["image_id"] == [f"{row['id'][1:]}.png"]
        assert (row["kind"], row["source"]) == ("caption", "mine")
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["rows"], report["usable"], report["phrases"], report["extractor"]) == (9, 13, 2, "stopwords")
    assert (tmp_path / "out.phrases.png").is_file()
    assert "9 of 13 usable pairs. 13 of 13 rows kept" in capsys.readouterr().out


def test_bad_pairs_are_counted_and_missing_pictures_left_out_before_counting(tmp_path):
    (tmp_path / "images").mkdir()
    for n in (0, 1, 2, 7):
        (tmp_path / "images" / f"x_{n:03d}.png").write_bytes(png()["bytes"])
    rows = [{"caption": "A cat."}] * 4 + ["{", {"caption": ""}, {"caption": 3}, {"caption": "A dog."}]
    data = write_pairs(tmp_path / "pairs.jsonl", rows)
    command = [data, "--image-pattern", "x_{:03d}.png", "--image-root", f"{tmp_path}/images", "--num-proc", "1"]
    command += ["--out", f"{tmp_path}/out.parquet", "--concepts", "stopwords"]
    captions.main(command)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["rejected"] == {"missing-file": 1, "no-json": 1, "empty-caption": 1, "odd-caption": 1}
    assert report["examples"]["missing-file"][0][0] == "000000003"
    assert load_rows(f"{tmp_path}/out.parquet", f"{tmp_path}/images")["id"][:] == [f"{n:09d}" for n in range(3)]
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(ValueError, match="Nothing is written"):
        captions.main([*command, "--strict"])
    with pytest.raises(ValueError, match="0 captions chosen"):
        captions.main([*command, "--min-captions", "4"])
    assert not (tmp_path / "out.parquet").exists()
    captions.main([*command, "--concepts", "none"])
    assert len(list(read_rows(tmp_path / "out.parquet"))) == 4


def test_embedded_pictures_stay_embedded(tmp_path):
    pictures = [None, png("red"), {"bytes": png("blue")["bytes"], "path": "x.png"}, {"bytes": None, "path": "y.png"}]
    data = write_pairs(tmp_path / "pairs.parquet", [{"image": picture, "caption": "A cat."} for picture in pictures])
    captions.main([data, "--out", f"{tmp_path}/out.parquet", "--concepts", "none"])
    rows = load_rows(f"{tmp_path}/out.parquet")
    assert [row["images"][0]["bytes"] for row in rows] == [png("red")["bytes"], png("blue")["bytes"], None]
    assert rows["image_id"][:] == [["000000001"], ["000000002"], ["y.png"]]
    assert rows[2]["images"][0]["path"] == "y.png"


def test_a_captions_file_of_coco_is_pairs(tmp_path):
    annotations = [{"id": 7 + n, "image_id": n // 2, "caption": f"Caption {n}."} for n in range(4)]
    annotations += [{"image_id": 9, "caption": "Whose?"}, {"image_id": 0, "caption": None}, {"image_id": []}, 3]
    coco = {"annotations": annotations, "images": [{"id": n, "file_name": f"{n}.png"} for n in (0, 1, 1)]}
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    command = [f"{tmp_path}/captions.json", "--out", f"{tmp_path}/out.parquet", "--concepts", "none"]
    captions.main([*command, "--id", "id"])
    rows = list(read_rows(tmp_path / "out.parquet"))
    said = [(row["id"], row["images"], row["messages"][1]["content"][0]["text"]) for row in rows]
    assert said == [(f"{7 + n}", [f"{n // 2}.png"], f"Caption {n}.") for n in range(4)]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["rejected"] == {"unknown-image": 1, "no-column": 1, "odd-entry": 2}
    (tmp_path / "0.png").write_bytes(png()["bytes"])
    captions.main([*command, "--image-root", str(tmp_path)])
    assert [row["images"] for row in read_rows(tmp_path / "out.parquet")] == [["0.png"]] * 2
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(ValueError, match="captions.json` has no `images`"):
        captions.main(command)
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match="wanted `{`: a JSON object"):
        captions.main(command)


def test_mistakes_are_named(tmp_path):
    data = write_pairs(tmp_path / "pairs.tsv", PAIRS)
    out = ["--out", f"{tmp_path}/out.parquet"]
    with pytest.raises(ValueError, match="no column `caption`, `image`, but name, file, text"):
        captions.main([data, *out])
    with pytest.raises(ValueError, match="has no place for a number"):
        captions.main([data, *out, "--image-pattern", "x.jpg"])
    with pytest.raises(ValueError, match="is no .parquet, .jsonl, .tsv file"):
        captions.main([str(tmp_path / "none.tsv"), *out])
    with pytest.raises(ValueError, match="is read, and would be written over"):
        captions.main([data, "--out", data])
    (tmp_path / "cut.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match="cut.parquet`: .* Wanted a whole parquet file"):
        captions.main([str(tmp_path / "cut.parquet"), *out])
    (tmp_path / "latin.tsv").write_bytes(b"caption\tf\xfcr\n")
    with pytest.raises(ValueError, match="latin.tsv` has no column `image`"):
        captions.main([str(tmp_path / "latin.tsv"), *out])


def test_the_benchmark_runs_and_says_what_it_measured(tmp_path, capsys):
    benchmark.main(
        ["--captions", "2000", "--num-proc", "1", "--concepts", "stopwords", "--out", f"{tmp_path}/out.json"]
    )
    figures = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""])) == figures
    assert figures["captions"] == 2000 and 0 < figures["rows"] <= 2000
    assert figures["seconds"] > 0 and figures["peak_mib"] > 50
    assert (tmp_path / "out.png").is_file()
