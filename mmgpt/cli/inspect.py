"""mmgpt inspect: what the model really gets of a few samples, in the terminal and as a page."""

from mmgpt.cli import options
from mmgpt.cli.train import parse_with
from mmgpt.errors import ConfigError


def main(arguments: list[str]) -> None:
    parser = options.run_parser(
        "inspect",
        "What the model gets of samples of the training split: their tokens, those that are learned in colour, and a "
        "page with the media as the encoders see them.",
    )
    parser.add_argument(
        "-n",
        type=int,
        default=4,
        metavar="N",
        help="samples, spread over the split; of a stream the first (default: 4)",
    )
    parser.add_argument("--page", default="inspect.html", metavar="FILE", help="to write (default: %(default)s)")
    args, config = parse_with(parser, arguments)
    if args.n < 1:
        raise ConfigError(f"-n: must be a whole number from 1 on, not {args.n}")

    from rich.console import Console

    from mmgpt.data.stream import head
    from mmgpt.encoders import build_encoders
    from mmgpt.evaluation.inspection import answer_start, as_text, inspected, write_inspection
    from mmgpt.processor import Processor
    from mmgpt.training.augment import picture_augment
    from mmgpt.training.run import model_config, read

    data = read(config)
    resolved, encoders = build_encoders(model_config(config))
    processor = Processor(resolved, data.tokenizer, picture_augment(config.augment))
    found = inspected(head(data.train, args.n), args.n, processor, config.seed)
    console = Console(highlight=False)
    for number, one in enumerate(found, 1):
        console.print(f"\n{number}. {one.sample.task}, {one.sample.where}", style="dim", markup=False, soft_wrap=True)
        for document in one.documents:
            start = 0 if document is one.documents[0] else answer_start(document, data.tokenizer)
            console.print(as_text(document, data.tokenizer, start), soft_wrap=True)
        for reason in one.broken:
            console.print(f"not learned from: {reason}", style="red", markup=False, soft_wrap=True)
    write_inspection(args.page, found, data.tokenizer, encoders, "What the model gets")
    console.print("\n[bold green]learned[/], given, [magenta]medium[/]; with the media: ", end="")
    console.print(args.page, markup=False, soft_wrap=True)
