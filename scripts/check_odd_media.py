"""Decodes every file of a folder's manifest.tsv, each in a process of its own, and prints what differs from it.

    python scripts/check_odd_media.py path/to/odd-media

It says of each file whether it should decode: yes, no (refused with a clear error) or partial (either is right).
"""

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

SECONDS = 20  # for one file, the start of Python included
KINDS = {"images": "Image", "audio": "Audio", "video": "Video"}
RIGHT = {"yes": {"decoded"}, "no": {"refused"}, "partial": {"decoded", "refused"}}
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # bytes
import mmgpt
try:
    getattr(mmgpt, sys.argv[1])(sys.argv[2]).load()
except mmgpt.MediaError as error:
    print(error)
    sys.exit(3)
"""


def outcome(path: Path, kind: str) -> tuple[str, str]:
    """(decoded, refused, noisy, crashed or hung; what was printed)."""
    command = [sys.executable, "-c", CHILD, kind, str(path)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "hung", f"over {SECONDS} s"
    if child.returncode not in (0, 3):
        return "crashed", child.stderr.strip()[-200:]
    if child.stderr or child.stdout.count("\n") > 1:
        return "noisy", (child.stderr or child.stdout).strip()[:200]
    return ("refused" if child.returncode else "decoded"), child.stdout.strip()


def main(folder: Path) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as manifest:
        for row in csv.DictReader(manifest, delimiter="\t"):
            result, detail = outcome(folder / row["file"], KINDS[row["file"].split("/")[0]])
            counts[row["should_decode"], result] += 1
            if result not in RIGHT[row["should_decode"]]:
                print(f"{row['file']}\tshould decode: {row['should_decode']}\t{result}\t{detail}")
    for (expected, result), count in sorted(counts.items()):
        print(f"{count:4} should decode: {expected:8} {result}")
    differences = sum(count for (expected, result), count in counts.items() if result not in RIGHT[expected])
    print(f"{differences} of {sum(counts.values())} files differ from the manifest")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
