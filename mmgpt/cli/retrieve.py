"""mmgpt retrieve: find the pictures, sounds and videos that a text, or one of them, is nearest to."""

import sys

from mmgpt.cli import options
from mmgpt.errors import ConfigError


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "retrieve",
        "Find the pictures, sounds and videos that a text, or one of them, is nearest to, by a model that pairs them; "
        "the nearest first.",
    )
    parser.add_argument("query", metavar="QUERY", help="a text; or the file of a picture, sound or video")
    parser.add_argument(
        "media", nargs="+", metavar="FILE", help="where to look: files, folders, patterns ('photos/**'), .tar, .parquet"
    )
    parser.add_argument("--most", type=int, default=5, metavar="N", help="files to tell (default: %(default)s)")
    options.add_model(parser)
    args = parser.parse_args(arguments)
    if args.most < 1:
        raise ConfigError(f"--most: must be a whole number from 1 on, not {args.most}")

    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.progress import track

    import mmgpt
    from mmgpt.content import MODALITIES, Image, Medium
    from mmgpt.data.folders import PARTS
    from mmgpt.data.pictures import find_media
    from mmgpt.errors import MediaError

    assistant = mmgpt.load(args.model, int8=args.int8)
    config = assistant.model.config
    known = {ending: kind for ending, kind in PARTS.items() if getattr(config, MODALITIES[kind]) is not None}
    sources = find_media(args.media, known, Image)
    total = sum(source.count for source in sources)
    every = (one for source in sources for one in source)
    names: list[str] = []
    broken: list[int] = []

    def media() -> Iterator[Medium]:
        for name, medium in track(every, "looking", total, transient=True, console=Console(stderr=True)):
            names.append(name)
            yield medium

    def lost(place: int, error: MediaError) -> None:
        broken.append(place)
        print(f"mmgpt: error: {' '.join(str(error).split())}", file=sys.stderr)

    kind = PARTS.get(Path(args.query).suffix.lower())
    query = kind(args.query) if kind else args.query
    for place, similarity in assistant.retrieve(query, media(), args.most, lost):
        if args.json:
            options.show({"file": names[place], "similarity": round(similarity, 4)})
        else:
            print(f"{similarity:.3f}  {names[place]}")
    if broken:
        sys.exit(1)
