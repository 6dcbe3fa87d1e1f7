"""Pushed to a Hub and loaded again: the same model, a card that the Hub reads, and nothing of this machine."""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from local_hub import READS
from tiny import some_audio, some_image
from walls import wall_config, write_walls

import mmgpt
from mmgpt import checkpoint
from mmgpt.errors import CheckpointError, ConfigError
from mmgpt.sharing import push
from mmgpt.training.report import finish
from mmgpt.training.run import train

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real run, short, on walls in a folder whose place is nobody's business."""
    home = tmp_path_factory.mktemp("private-home")
    config = wall_config(write_walls(home / "secret" / "walls"), home / "secret" / "run", epochs=2)
    finish(config, train(config))
    return home / "secret" / "run"


@pytest.fixture
def saved(tmp_path, model, tokenizer) -> Path:
    """A tiny model with eyes and ears, and what a run might have told of it."""
    training = {
        "data": "/home/alice/secret/photos", "format": "captions", "split": "train", "samples": 90, "epochs": 2,
        "steps": 7, "begun_from": ["gpt2", "openai/whisper-tiny", "/home/alice/towers/siglip", "./clip"],
        "note": {"log": ["C:\\\\Users\\\\alice\\\\run.log", "~/.secret/run"]},
    }  # fmt: skip
    return checkpoint.save(tmp_path / "saved", model, tokenizer, training)


def pushed(hub, name: str = "me/walls") -> dict[str, bytes]:
    return {path: content for path, content in hub.repositories[name].files.items() if path != ".gitattributes"}


def test_what_was_pushed_is_loaded_and_answers_the_same(hub, saved, assistant):
    push(saved, "me/tiny")
    again = mmgpt.load("me/tiny", device="cpu")
    pictures, sounds = [some_image(i) for i in range(3)], [some_audio(i) for i in range(2)]
    said = assistant.caption(pictures, max_new_tokens=8)
    assert len(set(said)) == 3
    assert again.caption(pictures, max_new_tokens=8) == said
    assert again.transcribe(sounds, max_new_tokens=8) == assistant.transcribe(sounds, max_new_tokens=8)
    assert checkpoint.fingerprint("me/tiny") == checkpoint.fingerprint(saved)


def test_the_files_of_the_checkpoint_and_the_card_go_in_one_commit(hub, run):
    push(run, "me/walls")
    files = pushed(hub)
    assert sorted(files) == FILES
    assert hub.repositories["me/walls"].messages == ["initial commit", "Upload a model of mmgpt"]
    assert files["model.safetensors"] == (checkpoint.resolve(run) / "model.safetensors").read_bytes()


def test_a_model_is_pushed_as_its_directory_is(hub, run):
    push(run, "me/directory", licence="mit")
    mmgpt.load(run, device="cpu").push_to_hub("me/directory-2", licence="mit")
    one, two = pushed(hub, "me/directory"), pushed(hub, "me/directory-2")
    assert two.pop("README.md").decode().replace("directory-2", "directory") == one.pop("README.md").decode()
    assert one == two


def test_a_second_push_is_a_new_revision_and_the_first_still_loads(hub, saved, model, tokenizer):
    first = push(saved, "me/tiny", tag="v1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gpt.embedding.weight.neg_()
    second = mmgpt.Assistant(other, tokenizer).push_to_hub("me/tiny")
    assert first.oid != second.oid
    weights = model.gpt.embedding.weight
    for source, revision, sign in (
        ("me/tiny", None, -1),
        ("me/tiny", "main", -1),
        ("me/tiny", second.oid, -1),
        ("me/tiny", first.oid, 1),
        ("me/tiny", "v1", 1),
        ("me/tiny@v1", None, 1),
    ):
        found = mmgpt.load(source, device="cpu", revision=revision).model.gpt.embedding.weight
        assert torch.equal(found, sign * weights), (source, revision)


def test_pushing_the_same_again_is_no_new_revision(hub, saved):
    first = push(saved, "me/tiny")
    again = push(saved, "me/tiny", tag="v1")
    assert first.oid == again.oid == hub.repositories["me/tiny"].tags["v1"]
    assert len(hub.repositories["me/tiny"].messages) == 2
    assert sum(asked.startswith("PUT") for asked in hub.asked) == 1


def test_the_card_is_one_that_the_hub_reads(hub, run):
    push(run, "me/walls", licence="apache-2.0", data_licence="CC BY 4.0, by Alice", datasets=["alice/walls"])
    card = ModelCard(pushed(hub)["README.md"].decode())
    card.validate()
    told = card.data.to_dict()
    assert (told["license"], told["library_name"], told["datasets"]) == ("apache-2.0", "mmgpt", ["alice/walls"])
    assert (told["tags"], told["pipeline_tag"]) == (["image", "text"], "image-to-text")
    scores = checkpoint.read_training(checkpoint.resolve(run))["scores"]
    assert {(one.metric_name, one.metric_value) for one in card.data.eval_results} == {
        (f"{score['task']}: {score['metric']}", round(100 * score["score"], 2)) for score in scores
    }
    for said in ("CC BY 4.0, by Alice", "walls (format captions, split train)", "9 × 2 epochs", "32 × 32 pixels"):
        assert said in card.text, said


def test_nothing_of_this_machine_is_uploaded(hub, run):
    push(run, "me/walls")
    files = pushed(hub)
    told = json.loads(files["training.json"])
    own = checkpoint.read_training(checkpoint.resolve(run))
    assert own["data"] == str(run.parent / "walls")
    assert told == own | {"data": "walls"}
    for name, content in files.items():
        for private in ("private-home", "secret", str(Path.home()), str(Path.cwd())):
            assert private.encode() not in content, (name, private)


def test_paths_of_any_kind_are_uploaded_as_names(hub, saved):
    values = json.loads((checkpoint.resolve(saved) / "config.json").read_text())
    values["model"]["image"]["weights"] = "/home/alice/towers/siglip"
    (checkpoint.resolve(saved) / "config.json").write_text(json.dumps(values))
    push(saved, "me/tiny")
    files = pushed(hub, "me/tiny")
    told = json.loads(files["training.json"])
    assert told["data"] == "photos"
    assert told["begun_from"] == ["gpt2", "openai/whisper-tiny", "./siglip", "./clip"]
    assert told["note"] == {"log": ["run.log", "run"]}
    for content in files.values():
        assert b"alice" not in content
        assert b"secret" not in content
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == ["gpt2", "openai/whisper-tiny"]
    assert "siglip (a local copy)" in card.text


def test_a_card_of_the_users_own_is_uploaded_as_it_is(hub, saved):
    own = "---\nlicense: mit\n---\n\nMy model, in my words.\n"
    (saved / "README.md").write_text(own)
    with pytest.raises(ConfigError, match=r"README\.md: is the model card, and says licences .* itself"):
        push(saved, "me/tiny", licence="other")
    push(saved, "me/tiny")
    assert pushed(hub, "me/tiny")["README.md"].decode() == own
    mmgpt.load(saved, device="cpu").push_to_hub("me/again")
    assert pushed(hub, "me/again")["README.md"].decode() == own
    assert (saved / "README.md").read_text() == own


def test_a_private_repository_is_made_and_a_public_one_is_not_taken_for_it(hub, saved, monkeypatch):
    push(saved, "me/own", private=True)
    assert hub.repositories["me/own"].private
    push(saved, "me/own", private=True)
    push(saved, "me/open")
    before = dict(hub.repositories["me/open"].commits)
    with pytest.raises(CheckpointError, match="me/open: is there already and is public"):
        push(saved, "me/open", private=True)
    assert hub.repositories["me/open"].commits == before
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="there is no such model, or the token does not open it"):
        mmgpt.load("me/own", device="cpu")


def test_a_tag_that_is_taken_is_told_before_anything_is_uploaded(hub, saved):
    push(saved, "me/tiny", tag="v1")
    before = list(hub.repositories["me/tiny"].messages)
    with pytest.raises(CheckpointError, match='me/tiny: has a tag "v1" already'):
        push(saved, "me/tiny", tag="v1")
    assert hub.repositories["me/tiny"].messages == before


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("hf_wrong", "the token is refused, or there is none; `hf auth login`"),
        (READS, "the token does not allow it"),
    ],
)
def test_a_token_that_is_refused_is_told_in_one_line(hub, saved, token, told):
    with pytest.raises(CheckpointError, match=f"^me/tiny: not uploaded to {hub.url}: {told}") as error:
        push(saved, "me/tiny", token=token)
    assert "\n" not in str(error.value)
    assert hub.repositories == {}


def test_no_token_at_all_is_told(hub, saved, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="the token is refused, or there is none"):
        push(saved, "me/tiny")


@pytest.mark.parametrize("name", ["tiny", "me/", "me/tiny/more", "a b/c"])
def test_a_name_that_is_none_is_told(hub, saved, name):
    with pytest.raises(ConfigError, match="a model of the Hub has an owner and a name: owner/name"):
        push(saved, name)


def test_a_name_that_the_hub_does_not_take_is_told(hub, saved):
    with pytest.raises(CheckpointError, match=r"me/-tiny\.\.: not uploaded .* Repo id must") as error:
        push(saved, "me/-tiny..")
    assert "\n" not in str(error.value)
    assert hub.asked == []


def test_a_licence_that_the_hub_does_not_know_is_told(hub, saved):
    with pytest.raises(CheckpointError, match=r'Invalid metadata in README\.md\. - "license" must be one of') as error:
        push(saved, "me/tiny", licence="my own")
    assert "\n" not in str(error.value)
    assert "model.safetensors" not in hub.repositories["me/tiny"].files


def test_a_hub_that_is_not_reached_is_told(hub, saved):
    hub.shutdown()
    hub.server_close()
    for call in (lambda: push(saved, "me/tiny"), lambda: mmgpt.load("me/tiny")):
        with pytest.raises(CheckpointError, match=r"^me/tiny: (no such directory .*)?not (uploaded|fetched)") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_is_not_on_the_hub_is_told(hub, saved):
    push(saved, "me/tiny")
    with pytest.raises(
        CheckpointError, match='me/tiny: not fetched from the Hub at revision "v9": there is no such rev'
    ):
        mmgpt.load("me/tiny", revision="v9")
    with pytest.raises(CheckpointError, match=r"me/none: .*there is no such model"):
        mmgpt.load("me/none")


def test_a_directory_has_no_revisions(saved):
    for directory in (saved, str(saved)):
        with pytest.raises(ConfigError, match=r'revision "v1": .*saved is a directory, and only models of the Hub'):
            mmgpt.load(directory, revision="v1")


def test_a_checkpoint_of_another_library_is_not_pushed_as_ours(hub, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="not a checkpoint of mmgpt"):
        push(tmp_path, "me/tiny")
    assert hub.asked == []
