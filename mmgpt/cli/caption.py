"""mmgpt caption: describe pictures."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser("caption", "Describe pictures, one line each.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    options.add_model(parser)
    options.add_decoding(parser)
    args = parser.parse_args(arguments)

    import mmgpt

    captions = mmgpt.load(args.model).caption(args.images, **options.decoding(args))
    for image, caption in zip(args.images, captions, strict=True):
        if args.json:
            options.show({"image": image, "caption": caption})
        else:
            print(caption if len(captions) == 1 else f"{image}: {caption}")
