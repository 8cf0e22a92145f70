"""`llava generate` against `transformers serve` with a tiny language model of random weights."""

import json

import pytest

from data_generation.ledger import Ledger
from recipes.cli import main as llava
from tests import tiny_text
from tests.teaching import draw_coco
from tests.test_stock import serving


TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
MOST = 12  # tokens of an answer


@pytest.mark.slow
def test_transformers_serve_is_asked_once_and_its_words_are_judged(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model, tokenizer = tiny_text.language_model_for("llama", "llama")
    tokenizer.chat_template = TEMPLATE
    model.generation_config.eos_token_id = None  # so that every answer is as long as it may be
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts" / "detail"
    prompts.mkdir(parents=True)
    (prompts / "system.txt").write_text("Say what is in the picture.")
    (prompts / "format_text.txt").write_text("Write the description alone.")
    (prompts / "000_context.txt").write_text("A cat sits on a chair.")
    (prompts / "000_reply.txt").write_text("In the picture a cat sits on a wooden chair beside a table. " * 3)
    name = str(tmp_path / "model")
    flags = [*draw_coco(tmp_path, 3), "--model", name, "--server", "served", "--max-output", str(MOST)]
    flags += ["--kinds", "detail", "--prompts", str(prompts.parent), "--attempts", "2", "--out", f"{tmp_path / 'o'}"]

    with serving(tmp_path / "model", tmp_path / "serve.log") as url:
        assert llava(["generate", *flags, "--base-url", url]) == 1  # random words are no description
    shown = capsys.readouterr()
    assert "Not one row is left" in shown.err and "truncated" in shown.err and "failed-" not in shown.err
    with Ledger(tmp_path / "o" / "ledger" / "00000-of-00001.sqlite") as ledger:
        stored = [json.loads(answer.body) for answer in ledger.answers()]
        spent = ledger.spent
    assert len(stored) == 6 == spent.requests and spent.maybe_requests == 0
    for answer in stored:
        assert answer["choices"][0]["finish_reason"] == "length" and answer["choices"][0]["message"]["content"]
        assert name in answer["model"] and answer["usage"]["completion_tokens"] == MOST
    assert spent.output == 6 * MOST and spent.input > 6 * 50

    # The server is gone: what is stored is all that is needed.
    assert llava(["generate", *flags, "--base-url", url]) == 1
    shown = capsys.readouterr()
    assert "truncated" in shown.err and "no connection" not in shown.err
