"""Large JSON files member by member: the same values as `json.load`, wherever the windows end."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_generation import json_stream
from data_generation.json_stream import stream_array, stream_members


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=8), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_an_array_is_what_json_loads(tmp_path_factory, values, chunk, indent, ascii_only):
    path = tmp_path_factory.mktemp("stream") / "x.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        assert list(stream_array(path)) == json.loads(path.read_text(encoding="utf-8"))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.integers(1, 40))
def test_members_are_what_json_loads(tmp_path_factory, values, chunk):
    path = tmp_path_factory.mktemp("stream") / "x.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    expected = [(key, one) for key, value in values.items() for one in (value if isinstance(value, list) else [value])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        assert list(stream_members(path)) == expected


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize(
    "content, found",
    [
        (b'[{"a": 1}, {"a": 2', "at character"),
        (b'[{"a": 1} {"a": 2}]', "found '{'"),
        (b'[{"a": 1},', "the file ends"),
        (b'[{"a": 1}] x', "found 'x'"),
        (b"[1, tru]", "at character"),
        (b"", "begins with ''"),
        (b'{"a": 1}', "begins with '{'"),
        (b'["\xff"]', "no UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 10_000 + b"]", "digits"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(tmp_path, monkeypatch, content, found, chunk):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    with pytest.raises(ValueError, match=found):
        list(stream_array(path))


def test_what_comes_before_the_break_is_given(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a"')
    rows = stream_array(path)
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="cut short"):
        next(rows)
