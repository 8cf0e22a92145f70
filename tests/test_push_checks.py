"""What `llava push` refuses: pickles, secrets, local paths, and what stock transformers does not load."""

import json
import re
import shutil
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from recipes.publishing import local_paths
from recipes.publishing.old_card import header_of
from recipes.publishing.push_checks import check_loads
from recipes.publishing.push_data import data_card, data_files
from recipes.publishing.push_files import Upload, model_files
from recipes.publishing.push_secrets import SECRETS, check_contents, own_secrets
from recipes.push import main
from tests import tiny_text
from tests.copies import spoilt as spoilt
from tests.copies import whole as whole


# Put together here, so that this file itself has nothing that looks like a key.
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"
KEYS = {
    "a token of the Hugging Face Hub": "hf_" + LETTERS[:34],
    "a key of OpenAI, Anthropic or the like": "sk-" + "proj-" + LETTERS[:30],
    "a key of Amazon": "AKIA" + "ABCDEFGHIJKLMNOP",
    "a key of Google": "AIza" + LETTERS[:35],
    "a token of GitHub": "ghp_" + LETTERS[:36],
    "a token of GitLab": "glpat-" + LETTERS[:20],
    "a token of Slack": "xoxb-" + LETTERS[:12],
    "a key of Groq, xAI, NVIDIA or Replicate": "gsk_" + LETTERS[:40],
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a password in an address": "https://ada:lovelace" + "@example.org/x",
    "a bearer token": "Authorization: Bearer " + LETTERS,
    "a key beside its name": "OPENAI_API_" + "KEY = " + LETTERS[:32],
}


def replace(path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        main(["model", str(folder), "--repo-id", "ada/x", "--dry-run"])
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


# -- files --


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "a.pt", "a.pth", "a.pkl", "last.ckpt"])
def test_a_pickle_is_refused_by_name(spoilt, name):
    (spoilt / name).write_bytes(b"\x80\x02")
    assert f"`{spoilt / name}` is a pickle" in refusal(spoilt)


def test_what_is_no_part_of_a_checkpoint_is_left_out_and_said(spoilt, capsys):
    (spoilt / "optimizer.pt").write_bytes(b"state")
    (spoilt / "checkpoint-3").mkdir()
    (spoilt / "notes.txt").write_text("mine")
    (spoilt / ".env").write_text("KEY=" + KEYS["a key of Amazon"])
    main(["model", str(spoilt), "--repo-id", "ada/x", "--dry-run"])
    out = capsys.readouterr().out
    assert "left out, no part of a checkpoint: .env, notes.txt (2)" in out
    assert "left out, training state: checkpoint-3, optimizer.pt (2)" in out
    assert "There is no record of its training beside the weights." in out


def test_a_lora_adapter_is_sent_to_merge(spoilt):
    (spoilt / "adapter_config.json").write_text("{}")
    assert f"`llava merge --adapter {spoilt} --out DIR`" in refusal(spoilt)


@pytest.mark.parametrize("content", ["", "{", "[1]", b"\xff\xfe\x00"])
def test_a_config_that_is_none_is_refused(spoilt, content):
    replace(spoilt / "config.json", content)
    assert f"`{spoilt / 'config.json'}`" in refusal(spoilt)


def test_other_folders_are_refused(tmp_path):
    assert "has no config.json" in refusal(tmp_path)
    assert "is no folder" in refusal(tmp_path / "none")


def test_a_link_out_of_the_folder_is_refused_but_in_the_cache_of_the_hub(spoilt, whole, tmp_path):
    (tmp_path / "id_rsa").write_text("mine")
    (spoilt / "LICENSE").symlink_to(tmp_path / "id_rsa")
    assert f"`{spoilt / 'LICENSE'}` is a link out of its folder, to `{tmp_path / 'id_rsa'}`" in refusal(spoilt)
    cached = tmp_path / "models--ada--x"
    (cached / "blobs").mkdir(parents=True)
    (cached / "snapshots/abc").mkdir(parents=True)
    for path in whole.iterdir():
        shutil.copy(path, cached / "blobs" / path.name)
        (cached / "snapshots/abc" / path.name).symlink_to(f"../../blobs/{path.name}")
    assert len(model_files(cached / "snapshots/abc", False).uploads) == len(list(whole.iterdir()))


def test_weights_that_no_loader_takes_are_left_out(spoilt):
    (spoilt / "model-00001-of-00002.safetensors").write_bytes(b"")
    selection = model_files(spoilt, False)
    assert "model-00001-of-00002.safetensors" not in selection.names
    ((reason, names),) = selection.left_out.items()
    assert "beside those that a loader takes" in reason and names == ["model-00001-of-00002.safetensors"]


def test_shards_and_their_index_have_to_agree(spoilt):
    (spoilt / "model.safetensors").rename(spoilt / "model-00001-of-00002.safetensors")
    assert "has model-00001-of-00002.safetensors, and no model.safetensors.index.json" in refusal(spoilt)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    replace(spoilt / "model.safetensors.index.json", json.dumps({"weight_map": names}))
    assert "names `model-00002-of-00002.safetensors`, and there is no such file" in refusal(spoilt)
    replace(spoilt / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../config.json"}}))
    assert "names `../config.json`, and there is no such file" in refusal(spoilt)
    replace(spoilt / "model.safetensors.index.json", "{}")
    assert "has no `weight_map`" in refusal(spoilt)


# -- loading --


def test_a_checkpoint_loads_with_all_its_weights(whole):
    model, _ = tiny_text.checkpoint(whole.parent / "same")
    assert check_loads(whole, model_files(whole, False).uploads) == sum(p.numel() for p in model.parameters())


def test_a_file_that_was_cut_off_is_refused(spoilt, whole):
    replace(spoilt / "model.safetensors", (whole / "model.safetensors").read_bytes()[:-100])
    assert f"Stock transformers does not load `{spoilt}`" in refusal(spoilt)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop("multi_modal_projector.linear_1.weight"), "lacks 1 weights"),
        (lambda w: w.update(extra=torch.zeros(2)), "has, besides those of the model, 1 weights, such as `extra`"),
        (lambda w: w.update({"multi_modal_projector.linear_1.bias": torch.zeros(5)}), "does not load"),
        (lambda w: w["multi_modal_projector.linear_1.bias"].fill_(float("nan")), "has nan in its weight"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused(spoilt, whole, change, words):
    weights = load_file(whole / "model.safetensors")
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    change(weights)
    (spoilt / "model.safetensors").unlink()
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    assert words in refusal(spoilt)


def test_a_model_without_weights_or_of_another_kind_is_refused(spoilt, whole):
    (spoilt / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(spoilt)
    config = json.loads((whole / "config.json").read_text())
    replace(spoilt / "config.json", json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    assert "needs code of its own" in refusal(spoilt)
    replace(spoilt / "config.json", json.dumps(config | {"model_type": "bert"}))
    assert "has the `model_type` 'bert', wanted `llava`" in refusal(spoilt)


def test_a_processor_of_another_checkpoint_is_refused(spoilt, whole):
    config = json.loads((whole / "processor_config.json").read_text())
    replace(spoilt / "processor_config.json", json.dumps(config | {"patch_size": 7}))
    assert "the processor makes 16 image tokens of a picture, and the model wants 4" in refusal(spoilt)
    (spoilt / "chat_template.jinja").unlink()
    assert "does not load the processor" in refusal(spoilt)


# -- secrets --


@pytest.mark.parametrize("kind", KEYS)
def test_what_looks_like_a_key_is_refused_and_not_shown(kind):
    with pytest.raises(ValueError) as caught:
        check_contents([Upload("training.json", json.dumps({"a": 1, "b": f"x {KEYS[kind]} y"}, indent=1).encode())])
    assert f"training.json, line 3: what looks like {kind}" in str(caught.value)
    assert KEYS[kind][8:] not in str(caught.value)


def test_every_kind_has_its_key():
    assert set(KEYS) == set(SECRETS)


def test_own_keys_are_found_whatever_they_look_like(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "0123456789-of-no-known-form")
    monkeypatch.setenv("SHORT_TOKEN", "none-needed")
    assert "SHORT_TOKEN" not in str(own_secrets())
    with pytest.raises(ValueError, match="LICENSE, line 2: the value of MY_API_KEY"):
        check_contents([Upload("LICENSE", b"one\n0123456789-of-no-known-form")])


def test_a_key_beside_weights_or_in_a_picture_is_found(tmp_path):
    key = KEYS["a key of Amazon"]
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"note": key})
    with pytest.raises(ValueError, match="model.safetensors, line 1: what looks like a key of Amazon"):
        check_contents([Upload("model.safetensors", tmp_path / "model.safetensors")])
    remark, file = PngInfo(), BytesIO()
    remark.add_text("Comment", key)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=remark)
    with pytest.raises(ValueError, match="example.png, line .*: what looks like a key of Amazon"):
        check_contents([Upload("example.png", file.getvalue())])
    images = [[{"bytes": file.getvalue(), "path": None}]]
    path = parquet(tmp_path / "a.parquet", messages=["x"], images=images)
    with pytest.raises(ValueError, match="`images.bytes`, among the rows from 0 on: 1 pictures in whose bytes"):
        check_contents([Upload("a.parquet", path)])
    Image.new("RGB", (4, 4)).save(file := BytesIO(), "PNG")
    images = [[{"bytes": file.getvalue(), "path": None}]]
    check_contents([Upload("a.parquet", parquet(tmp_path / "b.parquet", messages=["x"], images=images))])


def test_words_that_only_resemble_keys_pass():
    text = "risk-averse-and-other-hyphenated-words task-1 hf_hub AKIA Bearer of news https://example.org:80/a@b "
    text += "sk-toggleable__label-arrow-of-a-page xai-explainable-artificial-intelligence-and-others "
    text += 'api_key = "your-api-key-goes-here" api_key=os.environ["OPENAI_API_KEY"] the secret key: of a happy life'
    check_contents([Upload("README.md", text.encode())])


# -- local paths --


@pytest.mark.parametrize(
    "text, found",
    [
        ("made in /home/ada/runs/a, then", ["/home/ada/runs/a"]),
        ("see file:///etc/x and (/tmp/q)", ["file:///etc/x", "/tmp/q"]),
        (r"C:\Users\ada\data is there", [r"C:\Users\ada\data"]),
        ("https://example.org/home/ada and a/home/b and ./tmp/x and either/or, 1/2, /v1/chat", []),
        ("![](data:image/png;base64,AA/tmp/x/home/y//)", []),
    ],
)
def test_local_paths_are_found_in_text(text, found):
    assert [one[0] for one in local_paths.find(text)] == found


def test_local_paths_are_found_in_json_and_shortened():
    value = {"model": "/raid5/ada/start", "note": "of /tmp/q/x.json.", "list": ["a/b", "/nowhere"], "/tmp/k/v": 1}
    assert list(local_paths.in_json(value)) == [
        ("model", "/raid5/ada/start"),
        ("note", "/tmp/q/x.json."),
        ("a key of the object", "/tmp/k/v"),
    ]
    assert local_paths.shorten_json(value) == {
        "model": "start",
        "note": "of x.json.",
        "list": ["a/b", "/nowhere"],
        "v": 1,
    }


def test_names_of_parts_become_their_last_name_and_other_paths_are_refused(spoilt, whole):
    config = json.loads((whole / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "/home/ada/models/vicuna"
    replace(spoilt / "config.json", json.dumps(config))
    (upload,) = [one for one in model_files(spoilt, False).uploads if one.name == "config.json"]
    assert json.loads(upload.read())["text_config"]["_name_or_path"] == "vicuna"
    assert json.loads((spoilt / "config.json").read_text()) == config  # what lies there is not changed
    replace(spoilt / "config.json", json.dumps(config | {"cache": "/home/ada/cache"}))
    assert "config.json, `cache`: the local path `/home/ada/cache`" in refusal(spoilt)


def test_pieces_of_words_are_no_paths():
    tokenizer = {"model": {"vocab": {"/usr/bin": 5, "/home/": 6}, "merges": [["/home", "/x"]]}, "added_tokens": []}
    check_contents([Upload("tokenizer.json", json.dumps(tokenizer).encode())])
    tokenizer["added_tokens"] = [{"content": "/home/ada/x"}]
    with pytest.raises(ValueError, match=re.escape("`added_tokens[0].content`: the local path `/home/ada/x`")):
        check_contents([Upload("tokenizer.json", json.dumps(tokenizer).encode())])


# -- rows --


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_a_key_in_a_row_is_refused_and_a_path_in_its_words_is_not(tmp_path):
    text = [[{"role": "user", "content": [{"type": "text", "text": "cd /home/ada/x"}]}]]
    path = parquet(tmp_path / "a.parquet", messages=text, source=["coco"])
    check_contents(data_files(path).uploads)
    text[0][0]["content"][0]["text"] = "my key is " + KEYS["a token of GitHub"]
    path = parquet(tmp_path / "b.parquet", messages=text, source=["coco"])
    with pytest.raises(ValueError, match="`messages.content.text`, among the rows from 0 on: 1 times what looks"):
        check_contents(data_files(path).uploads)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.parquet", b"", "is no parquet file"),
        ("a.parquet", b"PAR1 cut off", "is no parquet file"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"{", "line 1"),
        ("a.jsonl", b"[1]\n", "line 1: [1]; wanted one JSON object"),
        ("a.jsonl", b"\xff\xfe", "wanted JSON in UTF-8"),
        ("a.jsonl", b'{"id": 1}', "has the columns id; wanted rows with `messages`"),
        ("a.csv", b"a,b", "is no .parquet or .jsonl file"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        data_files(tmp_path / name)


def test_files_that_no_loader_reads_together_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", messages=["x"], id=["1"])
    parquet(tmp_path / "b.parquet", messages=["x"])
    with pytest.raises(ValueError, match=re.escape("b.parquet` has the columns messages, and a.parquet has id, mess")):
        data_files(tmp_path)
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "b.jsonl").write_text('{"id": "1", "messages": []}\n')
    with pytest.raises(ValueError, match="reads one kind of file"):
        data_files(tmp_path)


def test_what_was_asked_is_no_data_even_where_a_card_says_so(tmp_path):
    parquet(tmp_path / "a.parquet", messages=["x"])
    (tmp_path / "ledger.sqlite").write_bytes(b"asked")
    assert data_files(tmp_path).left_out["no part of the data set"] == ["ledger.sqlite"]
    (tmp_path / "README.md").write_text('---\nconfigs:\n- data_files:\n  - path: "*"\n---\n')
    with pytest.raises(ValueError, match="says that `ledger.sqlite` is data"):
        data_files(tmp_path)


def test_many_files_are_one_pattern_in_the_header(tmp_path):
    (tmp_path / "part").mkdir()
    for number in range(30):
        (tmp_path / f"part/{number}.jsonl").write_text('{"id": "1", "messages": []}\n')
    header = header_of(data_card("ada/x", tmp_path, data_files(tmp_path).uploads, ""))
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": ["part/*.jsonl"]}]


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no .parquet or .jsonl file to push"):
        data_files(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files:\n  - path: data/*.parquet\n---\n")
    with pytest.raises(ValueError, match=re.escape("says that the data is `data/*.parquet`, and there is no such")):
        data_files(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="was written by `save_to_disk`"):
        data_files(tmp_path)
