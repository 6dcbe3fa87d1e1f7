"""mmgpt ask: answer a question about pictures, sounds or videos."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("ask", "Answer a question about pictures, sounds or videos, or about nothing but words.")
    parser.add_argument("question")
    options.add_media(parser)
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    assistant = mmgpt.load(args.model, int8=args.int8)
    answer = assistant.ask(
        args.question, image=args.image, audio=args.audio, video=args.video, **options.decoding(args)
    )
    if args.json:
        options.show({"question": args.question, "answer": answer})
    else:
        print(answer)
