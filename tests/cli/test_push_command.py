"""mmgpt push, and models of the Hub by their names at the other commands."""

import json
import subprocess
import sys
from pathlib import Path

DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
SHORT = ("--max-new-tokens", 6, "--temperature", 1.0, "--seed", 3)


def test_a_model_is_pushed_and_asked_by_its_name_and_revision(mmgpt_command, hub, model_directory, media, assistant):
    given = ("--licence", "mit", "--data-licence", "ours", "--dataset", "a/b", "--dataset", "c", "--tag", "v1")
    told = mmgpt_command("push", model_directory, "me/tiny", *given, "--private")
    assert told.code == 0, told.err
    revision = hub.repositories["me/tiny"].branches["main"]
    assert told.out == f"me/tiny@{revision}\n{hub.url}/me/tiny/commit/{revision}\n"
    assert hub.repositories["me/tiny"].private
    card = hub.repositories["me/tiny"].files["README.md"].decode()
    for said in ("license: mit\n", "- a/b\n- c\n", "| licence of the data | ours |"):
        assert said in card, said
    said = assistant.caption(media / "good.jpg", **DRAWN)
    for name in ("me/tiny", "me/tiny@v1", f"me/tiny@{revision}"):
        assert mmgpt_command("caption", media / "good.jpg", "--model", name, *SHORT).out == said + "\n"
    assert "convnext_atto" in mmgpt_command("info", "me/tiny@v1").out


def test_push_as_json_is_one_object(mmgpt_command, hub, model_directory):
    told = json.loads(mmgpt_command("push", model_directory, "me/tiny", "--json").out)
    assert told["model"] == "me/tiny"
    assert told["revision"] == hub.repositories["me/tiny"].branches["main"]
    assert told["url"].startswith(hub.url)
    assert not hub.repositories["me/tiny"].private


def test_a_push_that_fails_is_one_line(mmgpt_command, hub, model_directory, tmp_path, monkeypatch):
    assert "required: OWNER/NAME" in mmgpt_command("push", model_directory).error(2)
    assert "owner/name" in mmgpt_command("push", model_directory, "tiny").error(2)
    assert "no such directory" in mmgpt_command("push", tmp_path / "none", "me/tiny").error(1)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = mmgpt_command("push", model_directory, "me/tiny").error(1)
    assert "me/tiny: not uploaded" in line
    assert "the token is refused" in line
    assert hub.repositories == {}


def test_a_real_process_pushes_by_its_environment_and_without_torch(hub, model_directory):
    """As a user does it; HF_ENDPOINT and HF_TOKEN are in the environment."""
    command = [Path(sys.executable).with_name("mmgpt"), "push", model_directory, "me/tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.repositories["me/tiny"].files
    code = f"""
import sys
from mmgpt.cli.main import main
sys.argv = ["mmgpt", "push", {str(model_directory)!r}, "me/tiny"]
main()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
