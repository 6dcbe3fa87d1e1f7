"""Folders of pictures, sounds or clips, whose names are their classes, as ImageNet is laid out.

folder/dog/a.jpg                  a class to a folder, or, where the data name their splits,
folder/train/dog/a.jpg            train/, dev/ (or val/, valid/, validation/) and test/ with the classes inside
"""

from pathlib import Path

from mmgpt.content import Audio, Image, Medium, Video
from mmgpt.data.sample import Sample
from mmgpt.data.splits import SPLITS, members, split_name
from mmgpt.errors import DataError, shown
from mmgpt.folder import MediaFolder
from mmgpt.tasks import TASKS

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
PARTS = {**dict.fromkeys(IMAGES, Image), **dict.fromkeys(SOUNDS, Audio), **dict.fromkeys(VIDEOS, Video)}


def medium_of(path: str | Path, otherwise: type[Medium]) -> Medium:
    """The medium that a file is, by the ending of its name; `otherwise` where that tells none."""
    return PARTS.get(Path(path).suffix.lower(), otherwise)(path)


def read_folders(path: Path, split: str) -> list[Sample]:
    """The files of a split to classify, sorted by name; the answer is the name of the folder, as it is written.

    Args:
        path: The folder of the folders. Files in folders below a class's are of that class.
        split: By the folders train, dev and test; where there is no dev, every tenth file of training by name.

    Raises:
        DataError: There are no such files, or some that are in no class.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; format folders reads a folder with a folder for each class")
    names = MediaFolder(path).files(PARTS)
    if not names:
        raise DataError(f"{path}: no picture, sound or clip is in the folders here; known are {', '.join(PARTS)}")
    tops = {name.split("/")[0] for name in names if "/" in name}
    named = all(top.lower() in SPLITS for top in tops)
    # A class may be called train, as the vehicle; a split has folders alone.
    like_splits = [top for top in tops if top.lower() in SPLITS and all(_deep(name, top) for name in names)]
    if like_splits and not named:
        others = ", ".join(sorted(top for top in tops if top.lower() not in SPLITS))
        raise DataError(
            f"{path}: {sorted(like_splits)[0]}/ holds folders, as a split does, but {shown(others)} beside it is no "
            "split's name; move it away, or call it train, dev or test"
        )
    splits: dict[str, str | None] = {}
    classes: dict[str, str] = {}
    for name in names:
        *folders, _ = name.split("/")
        own, folders = (folders[0].lower(), folders[1:]) if named and folders else (None, folders)
        if folders and any("\ud800" <= letter <= "\udfff" for letter in folders[0]):  # bytes that are no UTF-8
            raise DataError(f"{path}: the folder {shown(folders[0])} has a name that is no UTF-8; rename it")
        if not folders:
            raise DataError(f"{path / name}: is in no class's folder; put it into one")
        splits[name], classes[name] = own, folders[0]
    try:
        chosen = members(splits, split)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    task, train = TASKS["classify"], split_name(split) == "train"
    samples = []
    for index, name in enumerate(chosen):
        file = path / name
        medium = PARTS[file.suffix.lower()](file)
        prompt = task.conversation(medium, prompt=task.wording(index if train else None))
        samples.append(Sample(tuple(prompt), (classes[name],), "classify", str(file)))
    return samples


def _deep(name: str, top: str) -> bool:
    """Whether a file of this folder, if it is one, lies in another folder inside."""
    return not name.startswith(f"{top}/") or name.count("/") > 1
