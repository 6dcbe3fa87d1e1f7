"""Random changes of pictures: what they are, and that they are drawn from `random` alone."""

import pickle
import random
from itertools import pairwise

import numpy as np
import PIL.Image
import torch

from mmgpt.run_config import AugmentConfig
from mmgpt.training.augment import PictureAugment

SPLIT = PIL.Image.fromarray(np.repeat(np.uint8([[[255, 0, 0]] * 20 + [[0, 0, 255]] * 20]), 30, axis=0))  # red, blue


def changed(config: AugmentConfig, seed: int = 0, picture: PIL.Image.Image = SPLIT) -> np.ndarray:
    random.seed(seed)
    return np.asarray(PictureAugment(config)(picture))


def test_nothing_is_changed_that_is_not_asked_for():
    assert not AugmentConfig().pictures
    assert not AugmentConfig(spec=True).pictures
    for config in (AugmentConfig(crop=0.9), AugmentConfig(mirror=True), AugmentConfig(randaugment=1)):
        assert config.pictures
    assert all((changed(AugmentConfig(), seed) == np.asarray(SPLIT)).all() for seed in range(9))


def test_a_picture_is_cropped_to_no_less_than_its_share_and_never_to_nothing():
    sizes = [changed(AugmentConfig(crop=0.6), seed).shape[:2] for seed in range(50)]
    assert all(18 <= height <= 30 and 24 <= width <= 40 for height, width in sizes)
    assert min(height for height, _ in sizes) < 21
    assert min(width for _, width in sizes) < 28
    assert changed(AugmentConfig(crop=0.01), picture=PIL.Image.new("RGB", (1, 1))).shape == (1, 1, 3)


def test_half_of_the_pictures_are_mirrored_if_so_asked_and_else_left_stays_left():
    red_on_the_left = [bool(changed(AugmentConfig(mirror=True), seed)[0, 0, 0]) for seed in range(100)]
    assert 30 < sum(red_on_the_left) < 70
    assert all(changed(AugmentConfig(crop=0.6), seed)[0, 0, 0] for seed in range(50))


def test_randaugment_makes_so_many_operations_of_this_strength():
    def distance(operations: int, magnitude: int) -> float:
        config = AugmentConfig(randaugment=operations, magnitude=magnitude)
        return float(np.mean([np.abs(changed(config, seed) - np.float32(SPLIT)).mean() for seed in range(60)]))

    assert 0 < distance(1, 9) < distance(3, 9)
    assert distance(2, 3) < distance(2, 30)


def test_all_chance_is_drawn_from_random_and_none_is_left_behind():
    config = AugmentConfig(crop=0.6, mirror=True, randaugment=2)
    first = [changed(config, seed) for seed in range(9)]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state()
    assert all(np.array_equal(one, changed(config, seed)) for seed, one in enumerate(first))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(np.array_equal(one, other) for one, other in pairwise(first))


def test_it_can_be_sent_to_workers():
    config = AugmentConfig(crop=0.6, mirror=True, randaugment=2)
    random.seed(1)
    there = pickle.loads(pickle.dumps(PictureAugment(config)))(SPLIT)
    assert np.array_equal(np.asarray(there), changed(config, 1))
