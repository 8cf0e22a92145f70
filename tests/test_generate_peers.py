"""The script that measures peers, with a peer that is a few lines: the real ones have environments of their own."""

import sys
import textwrap

from benchmarks import generate_speed


def test_a_peer_is_measured_and_a_broken_one_is_told(tmp_path, monkeypatch, capsys):
    site = tmp_path / "site"
    (site / "distilabel-9.9.dist-info").mkdir(parents=True)
    (site / "distilabel-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: distilabel\nVersion: 9.9\n"
    )
    (site / "distilabel").mkdir()
    (site / "distilabel" / "__init__.py").write_text("")
    (site / "distilabel" / "models.py").write_text(
        textwrap.dedent("""
            import asyncio, json, urllib.request
            from types import SimpleNamespace

            class OpenAILLM:
                def __init__(self, model, base_url, api_key):
                    self.url = f"{base_url}/chat/completions"
                def load(self):
                    completions = SimpleNamespace(create=lambda messages: asyncio.to_thread(self.ask, messages))
                    self._aclient = SimpleNamespace(chat=SimpleNamespace(completions=completions))
                def ask(self, messages):
                    body = json.dumps({"model": "m", "messages": messages}).encode()
                    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, body) as answer:
                        return {"generations": [json.load(answer)["choices"][0]["message"]["content"]]}
                def generate(self, inputs, **fields):
                    async def wave():
                        return await asyncio.gather(*map(self._aclient.chat.completions.create, inputs))
                    return asyncio.run(wave())
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(generate_speed, "GOAL_AT", 4)
    words = [
        "--in-flight",
        "4",
        "--latency",
        "0.1",
        "--waves",
        "2",
        "--rounds",
        "1",
        "--peers",
        sys.executable,
        "false",
    ]
    generate_speed.main(words)
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("| 4 | distilabel 9.9 |"))
    assert float(line.split("|")[3]) > 0 < float(line.split("|")[4])
    assert "| 4 | false | no word |" in told
