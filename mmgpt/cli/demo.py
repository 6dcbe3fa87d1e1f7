"""mmgpt demo: the whole job on a made world, from nothing to a model that sees, hears and watches."""

from mmgpt.cli import options
from mmgpt.cli.train import save_config
from mmgpt.config import (
    AdapterConfig,
    AudioEncoderConfig,
    GPTConfig,
    ImageEncoderConfig,
    ModelConfig,
    VideoEncoderConfig,
)
from mmgpt.run_config import DataConfig, OptimizerConfig, TrainConfig

HELD_OUT = 640  # samples of each task that the model is measured on; a fifth of them, reported apart, are of new kinds
GOALS = {"caption": 0.90, "question": 0.85, "sound": 0.90, "motion": 0.85, "match": 0.75}


def demo_config(out: str, samples: int, seed: int) -> TrainConfig:
    """A model small enough to learn the small world in a few minutes on two cores."""
    return TrainConfig(
        out=out,
        seed=seed,
        batch_size=48,
        data=DataConfig(format="world", samples=samples, val_samples=256, vocab_size=640),
        optimizer=OptimizerConfig(learning_rate=3.7e-3, muon=1.22e-2),
        model=ModelConfig(
            gpt=GPTConfig(width=128, layers=2, heads=4, context=256),
            # Two stages of a small ResNet: group norm, since batch norm learns nothing while its statistics are frozen.
            image=ImageEncoderConfig(
                "resnet18",
                size=(48, 48),
                layer=-3,
                args={
                    "layers": [1, 1, 1, 1],
                    "channels": [32, 64, 96, 128],
                    "stem_width": 32,
                    "norm_layer": "groupnorm",
                    "zero_init_last": False,
                },
            ),
            audio=AudioEncoderConfig(sample_rate=8000, window=256, hop=80, mels=40, channels=96, layers=2, reduction=8),
            video=VideoEncoderConfig(frames=4, grid=(2, 2)),
            adapters={
                "image": AdapterConfig("pixel_shuffle"),
                "audio": AdapterConfig("linear"),
                "video": AdapterConfig("mlp"),
            },
        ),
    )


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "demo",
        "Make a small world of shapes, sounds and clips, train one model on all of it, measure it on held-out samples, "
        "and write a report: about five minutes on two CPU cores.",
    )
    parser.add_argument("--out", default=options.DEFAULT_MODEL, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=56_000, metavar="N", help="to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, metavar="N", help="a task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of world and model (default: 0)")
    args = parser.parse_args(arguments)
    config = demo_config(args.out, args.samples, args.seed)
    save_config(config)
    print("making a small world and a small model; one model learns pictures, sounds, clips and text", flush=True)

    import shlex
    import shutil
    from pathlib import Path

    from mmgpt.data.world import World, tasks_of
    from mmgpt.data.world.examples import write_examples
    from mmgpt.training.report import finish
    from mmgpt.training.run import train

    shutil.rmtree(Path(config.out) / "state", ignore_errors=True)  # of a demo that was stopped: it begins anew
    run = train(config)
    held_out = [s for task in tasks_of() for s in World("test", args.held_out, args.seed, task=task)]
    finish(config, run, held_out, GOALS, title="mmgpt demo")
    files = write_examples(Path(args.out) / "examples", args.seed)
    model = ["--model", args.out]
    picture, speech, clip = (files[task] for task in ("caption", "transcribe", "describe"))
    print(f"\nreport: {Path(args.out) / 'report.html'} (open it in a browser)\nnext, on samples it has never seen:")
    for command, comment in (
        (["caption", picture.path, *model], f"truth: {picture.truth}"),
        (["ask", "How many shapes are there?", "--image", picture.path, *model], ""),
        (["transcribe", speech.path, *model], f"truth: {speech.truth}"),
        (["ask", clip.request, "--video", clip.path, *model], f"truth: {clip.truth}"),
        (["info", args.out], ""),
        (["serve", args.out], "a page to try it on, and OpenAI's API"),
    ):
        extra = "--extra serve " if command[0] == "serve" else ""
        print(f"  uv run {extra}mmgpt {shlex.join(map(str, command))}" + (f"   # {comment}" if comment else ""))
