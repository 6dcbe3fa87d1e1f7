from dataclasses import replace

import lightning as L
import pytest
import torch
from tiny import some_audio, some_image
from walls import wall_config, write_walls

from mmgpt import checkpoint
from mmgpt.batch import Example, collate
from mmgpt.config import PairConfig
from mmgpt.content import Message
from mmgpt.data.loader import Loader
from mmgpt.data.sample import Sample
from mmgpt.errors import ConfigError, DataError
from mmgpt.generation import Decoding, Engine
from mmgpt.model import MultimodalGPT
from mmgpt.processor import Processor
from mmgpt.run_config import AugmentConfig, OptimizerConfig, RewardConfig
from mmgpt.training.module import MultimodalModule
from mmgpt.training.report import read_curve
from mmgpt.training.reward import Rewards
from mmgpt.training.run import train


def documents(processor, number: int, *answers: str) -> list[Example]:
    """As the loader has them: the answers to one prompt share its media."""
    prompt = processor.encode_prompt([Message.of("user", some_image(number), "What?")])
    return [processor.encode_answer(replace(prompt, task="ask"), answer) for answer in answers]


def test_answers_to_the_same_prompt_are_references_of_one(processor, tokenizer):
    rewards = Rewards(RewardConfig("f1"), tokenizer)
    texts = [processor.encode([Message.of("user", "Why?"), Message.of("assistant", "so")])]
    batch = collate([*documents(processor, 0, "a dog", "the dog."), *documents(processor, 1, "a cat"), *texts])
    asked = rewards.prompts(batch)
    assert [one.references for one in asked] == [("a dog", "the dog."), ("a cat",), ("so",)]
    for number in range(2):
        prompt = processor.encode_prompt([Message.of("user", some_image(number), "What?")])
        assert asked[number].prompt.ids == prompt.ids
        assert not any(asked[number].prompt.supervised)
        assert [place for place, _ in asked[number].prompt.media] == [place for place, _ in prompt.media]


def test_of_a_conversation_the_last_answer_is_asked_for(processor, tokenizer):
    said = [Message.of("user", "One?"), Message.of("assistant", "1"), Message.of("user", "Two?")]
    whole = processor.encode([*said, Message.of("assistant", "2")])
    (asked,) = Rewards(RewardConfig("f1"), tokenizer).prompts(collate([whole]))
    assert asked.references == ("2",)
    assert asked.prompt.ids == processor.encode_prompt(said).ids
    assert not any(asked.prompt.supervised)


def test_plain_text_is_refused_as_it_answers_nothing(processor, tokenizer):
    example = replace(processor.encode([Message.of("assistant", "once")]), task="continue")
    with pytest.raises(DataError, match="reward: plain text answers nothing"):
        Rewards(RewardConfig("f1"), tokenizer).prompts(collate([example]))


def test_a_draw_weighs_what_it_scores_above_the_mean_of_the_others(model, processor, tokenizer, monkeypatch):
    rewards = Rewards(RewardConfig(samples=3, max_new_tokens=4), tokenizer)
    monkeypatch.setattr(rewards, "scores", lambda answers, references: [0.0, 0.5, 1.0])
    drawn = rewards.draw(model.eval(), collate(documents(processor, 0, "a", "b")), "seed")
    assert drawn.rewards == [0.0, 0.5, 1.0]
    assert drawn.weights.tolist() == pytest.approx([-0.25, 0.0, 0.25])  # -0.75, 0 and 0.75 among three
    prompt = processor.encode_prompt([Message.of("user", some_image(0), "What?")])
    for example in drawn.batch.examples:
        assert example.ids[: len(prompt)] == prompt.ids
        assert example.supervised == [False] * len(prompt) + [True] * (len(example) - len(prompt))
    assert len(drawn.batch.media["image"].inputs) == 1


def test_what_is_drawn_depends_on_the_seed_and_the_prompt_alone(model, processor, tokenizer):
    rewards = Rewards(RewardConfig("f1", samples=3, max_new_tokens=8), tokenizer)
    first, second = (documents(processor, number, "a") for number in range(2))

    def drawn(seed: str, *examples: Example) -> list[list[int]]:
        return [one.ids for one in rewards.draw(model.eval(), collate(examples), seed).batch.examples]

    together = drawn("seed", *first, *second)
    assert together == drawn("seed", *first) + drawn("seed", *second)
    assert len({tuple(ids) for ids in together}) == 6
    assert drawn("other", *first) != together[:3]
    places = [len(processor.encode_prompt([Message.of("user", some_image(0), "What?")]))] * 3
    assert [ids[place:] for ids, place in zip(together, places, strict=False)] != [
        ids[place:] for ids, place in zip(together[3:], places, strict=True)
    ]  # each prompt has a stream of its own


def test_its_gradient_is_that_of_the_expected_reward(model, processor, tokenizer):
    """Of answers of one token the reward that is to be expected can be counted out."""
    torch.manual_seed(0)
    model = MultimodalGPT(model.config).eval()
    prompt = processor.encode_prompt([Message.of("user", some_image(0), "What?")])
    batch = collate(documents(processor, 0, "x"))
    with torch.no_grad():
        likeliest = model(collate([prompt]))[-1].topk(20).indices.tolist()
    rewards = Rewards(RewardConfig("exact_match", samples=100, max_new_tokens=1), tokenizer)
    worth = {tokenizer.decode([token]): float(place % 2) for place, token in enumerate(likeliest)}
    rewards.scores = lambda answers, references: [worth.get(answer, 0.0) for answer in answers]  # type: ignore[method-assign]
    chances = model(collate([prompt]))[-1].softmax(0)
    expected = sum(chance * worth.get(tokenizer.decode([token]), 0.0) for token, chance in enumerate(chances))
    (exact,) = torch.autograd.grad(expected, model.gpt.transformer.norm.weight)
    total = torch.zeros_like(exact)
    for seed in range(100):
        drawn = rewards.draw(model, batch, str(seed))
        loss = model.loss(drawn.batch, drawn.weights)
        total -= torch.autograd.grad(loss.sum, model.gpt.transformer.norm.weight)[0] / 100
    assert torch.cosine_similarity(total, exact, dim=0) > 0.98
    assert float(total.norm() / exact.norm()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("metric", "scores"), [("exact_match", [1, 0, 0]), ("f1", [1, 2 / 3, 0]), ("wer", [1, 0.5, 0])]
)
def test_rewards_are_those_of_the_metric_and_none_is_below_zero(tokenizer, metric, scores):
    rewards = Rewards(RewardConfig(metric), tokenizer)
    assert rewards.scores(["red dog", "dog", "what is that there"], ["red dog"]) == pytest.approx(scores)


def test_cider_counts_less_what_many_references_say(tokenizer):
    rewards = Rewards(RewardConfig("cider"), tokenizer, [["man dog"], ["man cat"], ["man bird"], ["man fish"]])
    common, rare = rewards.scores(["man", "dog"], ["man dog"])
    assert common == 0  # all of them say it
    assert rare > 1


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run that knows a little of the walls' colours, and one by reward that goes on from it."""
    place = tmp_path_factory.mktemp("reward")
    folder = write_walls(place / "walls", train=18, dev=9)
    first = wall_config(folder, place / "first", epochs=4)
    train(first)
    settings = {"init": str(place / "first"), "model": type(first.model)(), "precision": "bf16-mixed", "epochs": 15}
    settings |= {"batch_size": 6, "optimizer": OptimizerConfig(3e-3, weight_decay=0.0)}
    config = wall_config(folder, place / "second", reward=RewardConfig("f1", max_new_tokens=8), **settings)
    train(config)
    return config, read_curve(place / "second")


def test_a_run_raises_the_reward_and_keeps_the_weights_of_the_highest(taught):
    config, curve = taught
    told = [row["val_reward"] for row in curve if "val_reward" in row]
    drawn = [row["reward"] for row in curve if "reward" in row]
    assert drawn[-1] > drawn[0] + 0.1
    assert all("loss" not in row for row in curve)
    kept = checkpoint.read_training(checkpoint.resolve(f"{config.out}/best"))
    assert kept["val_reward"] == pytest.approx(max(told), abs=1e-4)


def test_dropout_is_off_in_what_is_learned(model, processor, tokenizer):
    """What is learned from is what the model says, without chance beside the draws."""
    samples = [Sample((Message.of("user", some_audio(i), "What?"),), ("a b", "c"), "ask", f"x:{i}") for i in range(4)]

    def learned(dropout: float) -> dict[str, torch.Tensor]:
        config = replace(model.config, gpt=replace(model.config.gpt, dropout=dropout))
        own = MultimodalGPT(config)
        own.load_state_dict(model.state_dict())
        rewards = Rewards(RewardConfig("chrf", samples=3, max_new_tokens=8), tokenizer)
        module = MultimodalModule(own, OptimizerConfig(warmup=0), rewards=rewards)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, max_epochs=1,
        )  # fmt: skip
        trainer.fit(module, Loader(samples, processor, batch_size=2))
        return own.state_dict()

    one, other = learned(0.0), learned(0.9)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward": RewardConfig(samples=1)}, "reward.samples: must be from 2 on"),
        ({"reward": RewardConfig(max_new_tokens=0)}, "reward.max_new_tokens"),
        ({"reward": RewardConfig(), "loss_per": "document"}, "loss_per: not together with reward"),
        ({"reward": RewardConfig(), "augment": AugmentConfig(spec=True)}, r"augment\.spec: not together"),
        ({"reward": RewardConfig(), "augment": AugmentConfig(frames=True)}, r"augment\.frames: not together"),
        ({"reward": RewardConfig(), "augment": AugmentConfig(hide=0.5)}, r"augment\.hide: not together"),
        ({"reward": RewardConfig(), "label_smoothing": 0.1}, "label_smoothing: not together with reward"),
        ({"reward": RewardConfig(), "checkpoint_activations": True}, "checkpoint_activations: not together"),
    ],
)
def test_what_does_not_go_with_a_reward_is_refused(tmp_path, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        train(wall_config(write_walls(tmp_path / "walls"), tmp_path / "run", **changes))


@pytest.mark.parametrize("media", [[some_image(1)], [some_image(1), "two"], ["one", some_image(1), "two"]])
@pytest.mark.parametrize("cross", [None, "inside"])
def test_answers_with_media_in_them_are_refused(processor, tokenizer, cross, media):
    own = Processor(replace(processor.config, gpt=replace(processor.config.gpt, cross=cross)), tokenizer)
    prompt = own.encode_prompt([Message.of("user", some_image(0), "What?")])
    example = own.encode_answer(prompt, Message.of("assistant", *media).parts)
    with pytest.raises(DataError, match="reward: an answer with media in it"):
        Rewards(RewardConfig("f1"), tokenizer).prompts(collate([example]))


def test_what_is_drawn_is_the_same_whether_features_were_kept_or_not(model, processor, tokenizer):
    """As a run that is resumed finds in the cache what it had not before."""
    rewards = Rewards(RewardConfig("f1", samples=3, max_new_tokens=8), tokenizer)
    (example,) = documents(processor, 0, "a")
    ((place, item),) = example.media
    with torch.no_grad():
        tokens = model.eval().media_tokens("image", [item])[0]
    kept = replace(example, media=[(place, replace(item, data=tokens, encoded=True, key=b"k"))])
    one, other = (rewards.draw(model, collate([own]), "seed").batch for own in (example, kept))
    assert one.ids.tolist() == other.ids.tolist()


def test_a_model_that_pairs_is_refused(tmp_path):
    config = wall_config(write_walls(tmp_path / "walls"), tmp_path / "run", reward=RewardConfig())
    config.model.pair = PairConfig()
    with pytest.raises(ConfigError, match=r"model\.pair: not together with reward"):
        train(config)


def test_an_engine_takes_a_way_of_decoding_for_each_prompt(model, processor, tokenizer):
    prompts = [processor.encode_prompt([Message.of("user", f"{i}?")]) for i in range(2)]
    engine = Engine(model.eval(), tokenizer)
    ways = [Decoding(max_new_tokens=3), Decoding(max_new_tokens=5, temperature=1.0, n=2, seed=4)]
    each = engine.run(prompts, ways)
    assert each == [engine.run([prompt], way)[0] for prompt, way in zip(prompts, ways, strict=True)]
    assert [len(answers) for answers in each] == [1, 2]
