"""mmgpt retrieve: find the pictures that a text, picture, sound or video is nearest to."""

import sys

from mmgpt.cli import options
from mmgpt.errors import ConfigError

GROUP = 32  # pictures decoded and embedded together


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "retrieve",
        "Find the pictures that a text, or a medium, is nearest to, by a model that pairs them; the nearest first.",
    )
    parser.add_argument("query", metavar="QUERY", help="a text; or the file of a picture, sound or video")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="pictures, folders, patterns ('photos/**'), .tar, .parquet"
    )
    parser.add_argument("--most", type=int, default=5, metavar="N", help="pictures to tell (default: %(default)s)")
    options.add_model(parser)
    args = parser.parse_args(arguments)
    if args.most < 1:
        raise ConfigError(f"--most: must be a whole number from 1 on, not {args.most}")

    from itertools import islice
    from pathlib import Path

    import torch
    from rich.console import Console
    from rich.progress import track

    import mmgpt
    from mmgpt.content import Image
    from mmgpt.data.folders import PARTS
    from mmgpt.data.pictures import find_pictures
    from mmgpt.errors import MediaError

    sources = find_pictures(args.images)
    assistant = mmgpt.load(args.model, int8=args.int8)
    kind = PARTS.get(Path(args.query).suffix.lower())
    query = assistant.embed(kind(args.query) if kind else args.query)
    names: list[str] = []
    nearness: list[torch.Tensor] = []
    broken = False
    total = sum(source.count for source in sources)
    one_by_one = (one for source in sources for one in source)
    every = iter(track(one_by_one, "looking", total, transient=True, console=Console(stderr=True)))
    while group := list(islice(every, GROUP)):
        found = []
        for name, image in group:
            try:
                found.append((name, Image(image.load())))  # decoded once
            except MediaError as error:
                broken = True
                print(f"mmgpt: error: {' '.join(str(error).split())}", file=sys.stderr)
        if found:
            names += [name for name, _ in found]
            nearness.append(assistant.embed([image for _, image in found]) @ query)
    scores = torch.cat(nearness) if nearness else torch.empty(0)
    for i in scores.argsort(descending=True, stable=True)[: args.most].tolist():
        if args.json:
            options.show({"image": names[i], "similarity": round(float(scores[i]), 4)})
        else:
            print(f"{float(scores[i]):.3f}  {names[i]}")
    if broken:
        sys.exit(1)
