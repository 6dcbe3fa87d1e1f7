"""mmgpt transcribe: write down speech."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("transcribe", "Write down what is said in sounds, one line each.")
    parser.add_argument("sounds", nargs="+", metavar="SOUND", help="sound files")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    transcripts = mmgpt.load(args.model).transcribe(args.sounds, **options.decoding(args))
    for sound, transcript in zip(args.sounds, transcripts, strict=True):
        if args.json:
            options.show({"audio": sound, "transcript": transcript})
        else:
            print(transcript if len(transcripts) == 1 else f"{sound}: {transcript}")
