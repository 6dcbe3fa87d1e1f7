"""mmgpt info: what a checkpoint is, told from its files without building the model."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("info", "What a checkpoint is: sizes, modalities, training, scores.")
    parser.add_argument("model", nargs="?", default=options.DEFAULT_MODEL, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    args = parser.parse_args(arguments)

    from mmgpt import checkpoint

    directory = checkpoint.resolve(args.model)
    config = checkpoint.read_config(directory)
    training = checkpoint.read_training(directory)
    sizes = checkpoint.read_sizes(directory)
    if args.json:
        import dataclasses

        options.show({"parameters": sizes, "config": dataclasses.asdict(config), "training": training})
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    total = sum(sizes.values())
    gpt = config.gpt.resolved()
    table.add_row("model", f"{total / 1e6:.2f} M parameters in {args.model}")
    table.add_row(
        "decoder",
        f"{gpt.layers} layers, width {gpt.width}, {gpt.heads} heads, context {gpt.context}, "
        f"{gpt.vocab_size} tokens in the vocabulary ({sizes.get('gpt', 0) / 1e6:.2f} M)",
    )
    if config.image is not None:
        rows, columns = config.image.grid or (0, 0)
        height, width = config.image.size or (0, 0)
        table.add_row(
            "image",
            f"{config.image.name} at {height} × {width} pixels, {rows} × {columns} tokens, "
            f"{config.adapter('image').kind} adapter ({sizes.get('encoders.image', 0) / 1e6:.2f} M)",
        )
    if config.audio is not None:
        milliseconds = 1000 * config.audio.hop * config.audio.reduction / config.audio.sample_rate
        table.add_row(
            "audio",
            f"{config.audio.name} at {config.audio.sample_rate} Hz, {milliseconds:g} ms a token, "
            f"{config.adapter('audio').kind} adapter ({sizes.get('encoders.audio', 0) / 1e6:.2f} M)",
        )
    if config.video is not None:
        rows, columns = config.video.grid
        sound = " and its sound" if config.video.sound and config.audio is not None else ""
        table.add_row("video", f"{config.video.frames} frames of {rows} × {columns} tokens{sound}")
    for name in ("data", "samples", "epochs", "steps", "minutes", "val_loss"):
        if training.get(name) is not None:
            table.add_row(name.replace("_", " "), str(training[name]))
    for score in training.get("scores", []):
        control = "" if score["control"] is None else f", with shuffled media {100 * score['control']:.1f}"
        table.add_row(score["task"], f"{score['metric']} {100 * score['score']:.1f} (n = {score['n']}{control})")
    Console().print(table)
