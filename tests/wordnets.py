"""A small WordNet in the layout of the large one's files."""

from pathlib import Path

# offset, words, what it is a kind (@) or an instance (@i) of; a diamond: a sofa bed is a bed and a seat.
SENSES = [
    ("00000100", ["entity"], []),
    ("00000200", ["thing"], [("@", "00000100")]),
    ("00000300", ["furniture"], [("@", "00000200")]),
    ("00000400", ["seat"], [("@", "00000300")]),
    ("00000500", ["chair"], [("@", "00000400")]),
    ("00000600", ["sofa", "couch"], [("@", "00000400")]),
    ("00000700", ["bed"], [("@", "00000300")]),
    ("00000800", ["sofa_bed"], [("@", "00000600"), ("@", "00000700")]),
    ("00000900", ["person"], [("@", "00000100")]),
    ("00001000", ["chair", "chairwoman"], [("@", "00000900")]),
    ("00001100", ["Plato"], [("@i", "00000900")]),
    ("00001200", ["shelf"], [("@", "00000300")]),
    ("00001300", ["goose"], []),
]


def write_wordnet(folder: Path) -> Path:
    index: dict[str, list[str]] = {}
    data = ["  1 This software is licensed.", "  2 More of it."]
    for offset, words, above in SENSES:
        told = " ".join(f"{word} 0" for word in words)
        pointers = " ".join([f"{len(above):03}", *(f"{mark} {target} n 0000" for mark, target in above)])
        data.append(f"{offset} 03 n {len(words):02x} {told} {pointers} | a gloss; with | and @ 00000100")
        for word in words:
            index.setdefault(word.lower(), []).append(offset)
    lines = [f"{word} n {len(at)} 1 @ {len(at)} 0 {' '.join(at)}  " for word, at in sorted(index.items())]
    (folder / "data.noun").write_text("\n".join(data) + "\n")
    (folder / "index.noun").write_text("\n".join(["  1 This software is licensed.", *lines]) + "\n")
    (folder / "noun.exc").write_text("geese goose\n")
    return folder
