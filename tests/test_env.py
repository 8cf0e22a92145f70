"""`llava env`: what it shows of this machine, and that it shows no secret."""

from importlib.metadata import version

from recipes import env


def test_it_shows_versions_devices_and_settings_but_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-topsecret")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:topsecret@here/v1")
    env.main([])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].startswith(f"visual-instruction-tuning {version('visual-instruction-tuning')}")
    assert f"torch {version('torch')}" in lines and f"transformers {version('transformers')}" in lines
    assert any(line.startswith("CPU: ") for line in lines) and any(line.startswith("GPU") for line in lines)
    assert "HF_HOME=/somewhere" in lines and "OPENAI_BASE_URL=https://***@here/v1" in lines
    assert lines[-2:] == ["token of the Hub: set", "OPENAI_API_KEY: set"] and "secret" not in shown


def test_a_package_that_is_missing_is_named_unless_an_extra_wants_it(monkeypatch):
    wanted = ["torch>=2", "no-such-package>=1", 'no-such-extra>=1; extra == "demo"', env.PACKAGE + "[demo]"]
    monkeypatch.setattr(env, "requires", lambda name: wanted)
    assert env.packages() == ["no-such-package is not installed", f"torch {version('torch')}"]
