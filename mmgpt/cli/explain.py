"""mmgpt explain: where a model looks for each word it says."""

from mmgpt.cli import options

METHODS = ("occlusion", "rollout")


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "explain", "Where a model looks in pictures, sounds and videos for each word it says: a page, and pictures."
    )
    parser.add_argument("model", metavar="MODEL", help="a trained model, or one of the Hub")
    options.add_media(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="(default: to describe what is seen, or transcribe what is heard)"
    )
    parser.add_argument("--answer", metavar="TEXT", help="explain this answer instead of the model's own")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="hide one place after another, or follow the attention (default: %(default)s)",
    )
    parser.add_argument("--out", default="runs/explain", metavar="DIR", help="(default: %(default)s)")
    options.add_how(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    from dataclasses import asdict
    from pathlib import Path

    import mmgpt
    from mmgpt.evaluation.explain import explain
    from mmgpt.evaluation.explain_page import write_explanation
    from mmgpt.generation import Decoding
    from mmgpt.tasks import TASKS

    media = [mmgpt.Image(path) for path in args.image]
    media += [mmgpt.Audio(path) for path in args.audio]
    media += [mmgpt.Video(path) for path in args.video]
    task = "caption" if args.image else "describe" if args.video else "transcribe"
    question = args.prompt or TASKS[task].prompts[0]
    assistant = mmgpt.load(args.model, int8=args.int8)
    prompt = TASKS["ask"].conversation(*media, prompt=question)
    found = explain(assistant, prompt, args.answer, args.method, Decoding(**options.decoding(args)))
    write_explanation(Path(args.out), found, question)
    if args.json:
        words = [asdict(word) | {"maps": [level.tolist() for level in word.maps]} for word in found.words]
        options.show({"prompt": question, "words": words})
        return
    for word in found.words:
        print(f"{word.text.strip():20} {word.probability:6.1%}   blind {word.blind:6.1%}")
    print(f"\nthe page: {Path(args.out) / 'explanation.html'} (open it in a browser)")
