"""mmgpt info: what a checkpoint is, told from its files without building the model."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("info", "What a checkpoint is: sizes, modalities, training, scores.")
    parser.add_argument(
        "model",
        nargs="?",
        default=options.DEFAULT_MODEL,
        metavar="DIR",
        help="or a model of the Hub (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    args = parser.parse_args(arguments)

    from mmgpt import checkpoint

    directory = checkpoint.locate(args.model)
    config = checkpoint.read_config(directory)
    training = checkpoint.read_training(directory)
    sizes = checkpoint.read_sizes(directory)
    if args.json:
        import dataclasses

        options.show({"parameters": sizes, "config": dataclasses.asdict(config), "training": training})
        return

    from rich.console import Console
    from rich.table import Table

    from mmgpt.card import parts

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", f"{sum(sizes.values()) / 1e6:.2f} M parameters in {args.model}")
    for name, text in parts(config, sizes):
        table.add_row(name, text)
    for name in ("data", "samples", "epochs", "steps", "minutes", "val_loss", "val_reward"):
        if training.get(name) is not None:
            table.add_row(name.replace("_", " "), str(training[name]))
    for score in training.get("scores", []):
        control = "" if score["control"] is None else f", with shuffled media {100 * score['control']:.1f}"
        table.add_row(score["task"], f"{score['metric']} {100 * score['score']:.1f} (n = {score['n']}{control})")
    Console().print(table)
