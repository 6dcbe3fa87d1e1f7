import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt.content import Image, Text
from mmgpt.data.captions import read_captions
from mmgpt.errors import DataError
from mmgpt.tasks import TASKS


def folder_of(root: Path, text: str, *pictures: str, file: str = "captions.csv") -> Path:
    (root / "images").mkdir(exist_ok=True)
    (root / file).write_bytes(text.encode())
    for name in pictures:
        (root / "images" / name).touch()
    return root


def everything(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each picture, both splits together."""
    samples = read_captions(path, "train") + read_captions(path, "dev")
    return {sample.prompt[0].parts[0].source.name: sample.answers for sample in samples}  # type: ignore[union-attr]


def captions_of_the_one_picture(path: Path) -> tuple[str, ...]:
    [sample] = read_captions(path, "dev")
    return sample.answers


THREE = "image,caption\na.jpg,One.\nb.jpg,Two.\na.jpg,Three.\n"


def test_captions_of_a_picture_are_the_answers_of_one_sample(tmp_path):
    assert everything(folder_of(tmp_path, THREE, "a.jpg", "b.jpg")) == {"a.jpg": ("One.", "Three."), "b.jpg": ("Two.",)}


def test_a_sample_is_the_picture_then_the_request(tmp_path):
    [sample] = read_captions(folder_of(tmp_path, THREE, "a.jpg", "b.jpg"), "dev")
    [message] = sample.prompt
    picture, text = message.parts
    assert isinstance(picture, Image)
    assert picture.source == tmp_path / "images" / "a.jpg"
    assert text == Text(TASKS["caption"].prompts[0])
    assert (message.role, sample.task, sample.where) == ("user", "caption", f"{tmp_path / 'captions.csv'}:2")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("captions.csv", "\ufeff" + THREE),
        ("captions.csv", THREE.replace("\n", "\r\n")),
        ("captions.csv", " Image , Caption \n a.jpg , One. \n\n b.jpg , Two. \n a.jpg , Three. \n"),
        ("captions.csv", 'caption,width,image\n"One.",5,a.jpg\n"Two.",5,images/b.jpg\n"Three.",5,./images/a.jpg'),
        ("captions.tsv", THREE.replace(",", "\t")),
        ("captions.txt", THREE),
        ("captions.txt", "a.jpg\tOne.\nb.jpg\tTwo.\r\na.jpg\tThree."),
        ("Flickr8k.token.txt", "a.jpg#0\tOne.\nb.jpg#0\tTwo.\na.jpg#1\tThree.\n"),
        (
            "captions.jsonl",
            '{"image": "a.jpg", "caption": "One."}\n{"image": "b.jpg", "caption": "Two."}\n\n'
            '{"image": "a.jpg", "caption": "Three."}\n',
        ),
    ],
)
def test_every_way_of_writing_captions_reads_the_same(tmp_path, file, text):
    read = everything(folder_of(tmp_path, text, "a.jpg", "b.jpg", file=file))
    assert read == {"a.jpg": ("One.", "Three."), "b.jpg": ("Two.",)}
    assert everything(tmp_path / file) == read


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(st.sampled_from("ab ,\"\n\r\t'é…\u2028;#0") | st.characters(codec="utf-8")), min_size=1))
def test_any_caption_written_as_csv_is_read_back_but_for_the_white_space_around_it(tmp_path_factory, captions):
    captions = [caption for caption in captions if caption.strip()] or ["A dog."]
    root = tmp_path_factory.mktemp("written")
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *(("a.jpg", caption) for caption in captions)])
    (root / "a.jpg").touch()
    [sample] = read_captions(root, "dev")
    assert sample.answers == tuple(caption.strip() for caption in captions)


def test_a_quoted_caption_may_follow_a_space(tmp_path):
    folder_of(tmp_path, 'image, caption\na.jpg, "One, or two."\n', "a.jpg")
    assert captions_of_the_one_picture(tmp_path) == ("One, or two.",)


def test_a_line_separator_inside_json_does_not_end_the_line(tmp_path):
    folder_of(tmp_path, '{"image": "a.jpg", "caption": "One\u2028two."}\n', "a.jpg", file="captions.jsonl")
    assert captions_of_the_one_picture(tmp_path) == ("One\u2028two.",)


def test_quotes_inside_a_tab_separated_token_file_are_text(tmp_path):
    folder_of(tmp_path, 'a.jpg#0\t"Stop" says "the sign\n', "a.jpg", file="captions.txt")
    assert captions_of_the_one_picture(tmp_path) == ('"Stop" says "the sign',)


def test_flickr8k_lists_say_which_pictures_are_in_a_split(tmp_path):
    rows = "".join(f"{name}.jpg,A {name}.\n" for name in "abcd")
    folder_of(tmp_path, "image,caption\n" + rows, "a.jpg", "b.jpg", "c.jpg", file="captions.txt")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("c.jpg\na.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\n")  # d.jpg is in no list, and has no picture
    assert [sample.answers for sample in read_captions(tmp_path, "train")] == [("A a.",), ("A c.",)]
    assert [sample.answers for sample in read_captions(tmp_path, "dev")] == [("A b.",)]
    with pytest.raises(DataError, match=r'captions.txt: nothing is in the split "test"; there is train \(2\), dev'):
        read_captions(tmp_path, "test")


def test_a_picture_in_two_flickr8k_lists_is_an_error(tmp_path):
    folder_of(tmp_path, THREE, "a.jpg", "b.jpg")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\n")
    with pytest.raises(DataError, match=r'devImages.txt:1: "b.jpg" is in the list of train too'):
        read_captions(tmp_path, "train")


def test_a_split_column_is_obeyed(tmp_path):
    folder_of(tmp_path, "image,caption,split\na.jpg,A,train\nb.jpg,B,val\nc.jpg,C,test\n", "a.jpg", "b.jpg", "c.jpg")
    assert [read_captions(tmp_path, split)[0].answers for split in ("train", "dev", "test")] == [("A",), ("B",), ("C",)]


def test_a_picture_in_two_splits_is_an_error(tmp_path):
    folder_of(tmp_path, "image,caption,split\na.jpg,A,train\na.jpg,B,dev\n", "a.jpg")
    with pytest.raises(DataError, match=r'captions.csv:3: "a.jpg" is in the split dev here, and in train at .*:2'):
        read_captions(tmp_path, "train")


def test_training_has_all_wordings_and_dev_has_the_default(tmp_path):
    names = [f"{index:02}.jpg" for index in range(40)]
    folder_of(tmp_path, "image,caption\n" + "".join(f"{name},x\n" for name in names), *names)
    asked = {split: [s.prompt[0].parts[1].text for s in read_captions(tmp_path, split)] for split in ("train", "dev")}  # type: ignore[union-attr]
    prompts = TASKS["caption"].prompts
    assert Counter(asked["train"]) == dict.fromkeys(prompts, 36 // len(prompts))
    assert asked["dev"] == [prompts[0]] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"captions.csv: the file is empty"),
        ("\n\n", r"captions.csv: the file is empty"),
        ("image,caption\n", r"captions.csv: the file has a header and no rows"),
        ("picture,caption\na.jpg,A.\n", r'no column for the picture .*; the columns are "picture, caption"'),
        ("image,words\na.jpg,A.\n", r'no column for the caption .*; the columns are "image, words"'),
        ("image,file,caption\na.jpg,a.jpg,A.\n", r"which column is the picture: image or file\?"),
        ("image,caption,caption\na.jpg,A.,B.\n", r'csv:1: the column "caption" is named twice'),
        ("image,caption\na.jpg,A.\na.jpg, \n", r"csv:3: the text is empty"),
        ("image,caption\n,A.\n", r"csv:2: the name of the picture is empty"),
        ("image,caption\na.jpg,A dog, running.\n", r'csv:2: 3 fields, where the header has 2, "image, caption"; quote'),
        ("image,caption\na.jpg,A dog\nruns.\n", r"csv:3: 1 fields, where the header has 2"),
        ('image,caption\na.jpg,"Two\nlines."\na.jpg,"A dog\n', r"csv:4: unexpected end of data; a quoted field"),
        ('image,caption\na.jpg,"A" dog\n', r"csv:2: .* expected after"),
        ("image,caption\na.jpg,A.\nb.jpg,B.\n", r'csv:3: "b.jpg" is not in the folder .*images; add the picture or re'),
        ("image,caption\nhttps://x.org/a.jpg,A.\n", r'csv:2: "https://x.org/a.jpg" is a URL'),
        ("image,caption\n../a.jpg,A.\n", r'csv:2: "../a.jpg" leads out of the folder'),
        ("image,caption\n/etc/passwd,A.\n", r'csv:2: "/etc/passwd" leads out of the folder'),
    ],
)
def test_a_malformed_captions_file_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_captions(folder_of(tmp_path, text, "a.jpg"), "dev")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.jpg", "caption": "A."}\n{"image": "a.jpg"\n', r"jsonl:2: not JSON: .*\(column \d+\)"),
        ('["a.jpg", "A."]\n', r"jsonl:1: not an object"),
        ('{"image": "a.jpg", "caption": 3}\n', r"jsonl:1: the text is 3; it is a string"),
        ('{"image": ["a.jpg"], "caption": "A."}\n', r"jsonl:1: the name of the picture is \['a.jpg'\]; it is a string"),
        ('{"image": "a.jpg", "caption": "A."}\n{"image": "a.jpg"}\n', r"jsonl:2: the text is missing"),
        ('{"image": "a.jpg", "caption": "A.", "split": 1}\n', r"jsonl:1: the split is 1; it is a string"),
        ('{"image": "a.jpg", "caption": "\\ud83d"}\n', r"jsonl:1: .* half of a surrogate pair"),
        ("[" * 100_000, r"jsonl:1: not usable JSON"),
    ],
)
def test_a_malformed_jsonl_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_captions(folder_of(tmp_path, text, "a.jpg", file="captions.jsonl"), "dev")


def test_a_token_line_without_a_tab_is_told(tmp_path):
    with pytest.raises(DataError, match=r"captions.txt:2: no tab"):
        read_captions(folder_of(tmp_path, "a.jpg\tA.\na.jpg B.\n", "a.jpg", file="captions.txt"), "dev")


def test_all_missing_pictures_are_counted(tmp_path):
    rows = "a.jpg,A\nx.jpg,X\nx.jpg,X again\ny.jpg,Y\nz.jpg,Z\n"
    with pytest.raises(DataError, match=r'csv:3: "x.jpg" is not in the folder .* \(2 more are missing\)$'):
        read_captions(folder_of(tmp_path, "image,caption\n" + rows, "a.jpg"), "train")


def test_text_that_is_not_utf8_is_told_with_its_line(tmp_path):
    folder_of(tmp_path, "", "a.jpg")
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,Un chien.\na.jpg,Un été.\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"captions.csv:3: not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        read_captions(tmp_path, "dev")


def test_a_folder_without_or_with_two_captions_files_is_told(tmp_path):
    with pytest.raises(DataError, match=r"none of captions.csv, .* is in this folder"):
        read_captions(tmp_path, "train")
    folder_of(tmp_path, THREE, "a.jpg", "b.jpg")
    folder_of(tmp_path, THREE, file="captions.txt")
    with pytest.raises(DataError, match=r"which file: captions.csv or captions.txt\?"):
        read_captions(tmp_path, "train")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_captions(tmp_path / "nowhere", "train")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.jpg").touch()
    data = tmp_path / "data"
    data.mkdir()
    folder_of(data, "image,caption\na.jpg,A.\n")
    (data / "images" / "a.jpg").symlink_to("../../secret.jpg")
    with pytest.raises(DataError, match=r"csv:2: .*a.jpg is a link out of the folder"):
        read_captions(data, "dev")
