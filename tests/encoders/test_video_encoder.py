import copy

import pytest
import torch

from mmgpt.config import VideoEncoderConfig, video_grid
from mmgpt.encoders import AudioEncoder, ImageEncoder, VideoEncoder
from mmgpt.encoders.video import mask_stretches
from mmgpt.errors import ConfigError


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    image = ImageEncoder("test_vit", size=(64, 48), args={"depth": 1}, prefix=True)
    audio = AudioEncoder(channels=24, layers=1, mels=40)
    return VideoEncoder(VideoEncoderConfig(frames=3, grid=(2, 1)), image, audio).eval()


def clips(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 3, 3, 64, 48), generator=generator, dtype=torch.uint8)


def sound(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.2


def test_tokens_are_as_many_as_the_grid_tells_with_sound_and_without(encoder):
    tokens, lengths = encoder(clips(3), [sound(5000), None, sound(700)])
    expected = [video_grid(encoder.config, encoder.audio.config, samples) for samples in (5000, 0, 700)]
    assert lengths.tolist() == [grid.count for grid in expected] == [3 * 2 + 8, 3 * 2, 3 * 2 + 2]
    assert [encoder.grid(samples) for samples in (5000, 0, 700)] == expected
    assert tokens.shape == (3, 14, encoder.width)
    assert not tokens[1, 6:].any()


def test_another_clip_in_the_batch_changes_no_tokens(encoder):
    frames, sounds = clips(3), [sound(700), None, sound(9000)]
    together, lengths = encoder(frames, sounds)
    for i in range(3):
        alone, _ = encoder(frames[i : i + 1], sounds[i : i + 1])
        torch.testing.assert_close(together[i, : lengths[i]], alone[0], atol=1e-5, rtol=1e-4)


def test_frames_are_pooled_from_the_image_encoders_patches(encoder):
    frames = clips(1)
    (tokens, _) = encoder.forward_features(frames, [-1])[0]
    patches = encoder.image(frames[0])[0][:, 1:]  # without the class token; 4 x 3 patches a frame
    upper, lower = patches[:, :6].mean(1), patches[:, 6:].mean(1)
    torch.testing.assert_close(tokens[0], torch.stack([upper, lower], dim=1).flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_order_of_frames_tells_in_the_tokens(encoder):
    same = clips(1)[:, :1].expand(-1, 3, -1, -1, -1)
    tokens = encoder(same)[0].unflatten(1, (3, 2))
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
    assert not torch.allclose(tokens[:, 1], tokens[:, 2])


def test_a_frame_is_told_by_what_changed_since_the_one_before(encoder):
    """Its tokens differ by where it came from; those of the frames around it, and of a clip at rest, do not."""
    first, second, third = clips(1)[0]
    there, back = (encoder(torch.stack(clip)[None])[0].unflatten(1, (3, 2))[0] for clip in (
        (first, second, third), (third, second, third)))  # fmt: skip
    assert not torch.allclose(there[1], back[1])
    torch.testing.assert_close(there[2], back[2])
    frames, _ = encoder.forward_features(torch.stack((first, second, third))[None], [-1])[0]
    frames = frames[0].unflatten(0, (3, 2))
    still = encoder(second.expand(1, 3, -1, -1, -1))[0].unflatten(1, (3, 2))[0]
    torch.testing.assert_close(there[1] - still[1], encoder.change(frames[1] - frames[0]), atol=1e-5, rtol=1e-4)


def test_a_layer_over_time_tells_a_token_of_two_frames_before_and_behind_it(encoder):
    torch.manual_seed(0)
    config = VideoEncoderConfig(frames=9, grid=(2, 1), sound=False, layers=1)
    layered = VideoEncoder(config, encoder.image).eval()
    frames = torch.cat([clips(3), clips(4)[:1], clips(5)[:2]]).flatten(0, 1)[:9]
    other = frames.clone()
    other[4] = 255 - other[4]
    one, two = layered(torch.stack([frames, other]))[0].unflatten(1, (9, 2))
    differs = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two, strict=True)]
    assert differs == [2 <= frame <= 7 for frame in range(9)]  # 5, too, is told what changed since 4
    alone = layered(other[None])[0].unflatten(1, (9, 2))[0]
    torch.testing.assert_close(two, alone, atol=1e-5, rtol=1e-4)


def test_sound_tokens_follow_the_frames(encoder):
    silent, _ = encoder(clips(1))
    heard, _ = encoder(clips(1), [sound(3000)])
    torch.testing.assert_close(heard[:, :6], silent)
    track, _ = encoder.audio([sound(3000)])
    torch.testing.assert_close(heard[:, 6:], encoder.sound(track))


def test_frames_of_some_clips_with_sound_are_hidden_in_training_alone(encoder):
    own, sounds = copy.deepcopy(encoder).train(), [sound(4000)] * 40
    frames = clips(1).repeat(40, 1, 1, 1, 1)
    with torch.no_grad():
        plain, lengths = own(frames, sounds)
        own.hide = 0.5
        torch.manual_seed(0)
        tokens, _ = own(frames, sounds)
        mute, _ = own(frames)
        assert torch.equal(own.eval()(frames, sounds)[0], plain)
    seen = own.config.frames * own.config.grid[0] * own.config.grid[1]
    assert seen < int(lengths[0])
    hidden = [not bool(one[:seen].any()) for one in tokens]
    assert 10 < sum(hidden) < 30
    for one, other, gone in zip(tokens, plain, hidden, strict=True):
        assert torch.equal(one[seen:], other[seen:])  # the sound stays
        assert gone or torch.equal(one, other)
    assert mute.any(dim=2).all()  # of clips without sound nothing would be left


def test_stretches_of_frames_are_hidden_behind_the_mean_in_training_alone(encoder):
    torch.manual_seed(0)
    x = torch.randn(200, 20, 2, 4)
    masked = mask_stretches(x)
    hidden = (masked != x).flatten(2).any(2)  # clips, frames
    mean = x.mean(1, keepdim=True).expand_as(x)
    assert torch.equal(masked[hidden], mean[hidden])
    lengths = hidden.sum(1)
    assert lengths.max() <= 9  # three stretches of three frames
    assert lengths.min() == 0
    assert 3 < lengths.float().mean() < 4.5  # each 1.5 frames long at the mean, and some overlap
    assert (hidden.sum(0) > 10).all()  # the first and last frame, too
    own, frames = copy.deepcopy(encoder).train(), clips(8)
    with torch.no_grad():
        plain, _ = own(frames)
        own.augment = True
        assert torch.equal(own.eval()(frames)[0], plain)


def test_without_audio_encoder_sounds_are_left_out(encoder):
    mute = VideoEncoder(VideoEncoderConfig(frames=3, sound=False), encoder.image, encoder.audio)
    assert mute.audio is None
    assert mute(clips(2), [sound(3000), None])[1].tolist() == [12, 12]
    assert mute.grid(3000).count == 12


def test_encoders_are_shared_not_copied(encoder):
    assert VideoEncoder(encoder.config, encoder.image, encoder.audio).image is encoder.image


def test_frozen_encoder_trains_nothing():
    video = VideoEncoder(VideoEncoderConfig(), ImageEncoder("test_vit", size=(64, 64), args={"depth": 1})).freeze()
    video.train()
    assert not any(module.training for module in video.modules())
    assert not any(parameter.requires_grad for parameter in video.parameters())


def test_grid_finer_than_the_image_encoders_is_refused(encoder):
    with pytest.raises(ConfigError, match="finer"):
        VideoEncoder(VideoEncoderConfig(grid=(5, 3)), encoder.image)
