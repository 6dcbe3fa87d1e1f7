"""mmgpt classify: how likely labels are for a picture, sound, video or text."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "classify", "How likely labels are for a picture, sound, video or text, the likeliest first."
    )
    parser.add_argument(
        "source", metavar="FILE|TEXT", help="what is no file, and has not the ending of a medium, is a text"
    )
    parser.add_argument("--labels", required=True, metavar="A,B,...", help="what it may be")
    parser.add_argument(
        "--template", default="{}", help="what is said of it in training, {} standing for the label (default: {})"
    )
    options.add_examples(parser, "LABEL")
    options.add_model(parser)
    args = parser.parse_args(arguments)

    import os
    from pathlib import Path

    import mmgpt
    from mmgpt.data.folders import PARTS

    def read(source: str) -> str | mmgpt.Text:
        medium = Path(source).suffix.lower() in PARTS or os.path.exists(source)  # noqa: PTH110  Path's fails for long texts
        return source if medium else mmgpt.Text(source)

    labels = [label.strip() for label in args.labels.split(",") if label.strip()]
    assistant = mmgpt.load(args.model, int8=args.int8)
    examples = [(read(source), label) for source, label in args.example]
    shares = assistant.classify(read(args.source), labels, args.template, examples)
    if args.json:
        options.show({"source": args.source, "labels": shares})
    else:
        print("\n".join(f"{100 * share:5.1f} %  {label}" for label, share in shares.items()))
