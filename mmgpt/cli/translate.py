"""mmgpt translate: say a text in another language."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("translate", "Say a text in another language.")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="as in training: German")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    assistant = mmgpt.load(args.model, int8=args.int8)
    translation = assistant.translate(args.text, args.to, **options.decoding(args))
    if args.json:
        options.show({"text": args.text, "to": args.to, "translation": translation})
    else:
        print(translation)
