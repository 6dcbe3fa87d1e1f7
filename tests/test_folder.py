import pytest

from mmgpt.errors import DataError
from mmgpt.folder import MediaFolder, MissingFileError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    (root / "images" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "images/a.jpg", "images/b.jpg", "images/deep/c.jpg"):
        (root / name).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "d.jpg").touch()
    return root


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "a.jpg"),  # the folder itself comes before its places
        ("b.jpg", "images/b.jpg"),
        ("./images//b.jpg", "images/b.jpg"),
        ("images/b.jpg", "images/b.jpg"),
        ("deep/c.jpg", "images/deep/c.jpg"),
    ],
)
def test_names_are_found_in_the_folder_and_its_places(root, name, path):
    assert MediaFolder(root, ("images",)).find(name) == root / path


@pytest.mark.parametrize("name", ["z.jpg", "images", "", ".", "a.jpg/b.jpg", "nowhere/a.jpg", "x" * 5000])
def test_what_is_no_file_is_missing(root, name):
    with pytest.raises(MissingFileError, match="is not in the folder"):
        MediaFolder(root).find(name)


@pytest.mark.parametrize("name", ["../outside/d.jpg", "images/../a.jpg", "..", "/etc/passwd", "a\0.jpg"])
def test_names_that_lead_out_are_refused(root, name):
    with pytest.raises(DataError, match="leads out of the folder"):
        MediaFolder(root).find(name)


@pytest.mark.parametrize("name", ["link.jpg", "linked/d.jpg"])
def test_links_out_of_the_folder_are_refused(root, name):
    (root / "link.jpg").symlink_to("../outside/d.jpg")
    (root / "linked").symlink_to("../outside")
    with pytest.raises(DataError, match="is a link out of the folder"):
        MediaFolder(root).find(name)


def test_links_inside_the_folder_and_a_linked_folder_are_followed(root):
    (root / "link.jpg").symlink_to("images/b.jpg")
    (root.parent / "alias").symlink_to(root)
    assert MediaFolder(root).find("link.jpg") == root / "link.jpg"
    assert MediaFolder(root.parent / "alias").find("images/b.jpg").is_file()


def test_a_link_to_itself_is_missing(root):
    (root / "loop").symlink_to("loop")
    with pytest.raises(MissingFileError):
        MediaFolder(root).find("loop/a.jpg")


def test_a_url_is_refused(root):
    with pytest.raises(DataError, match="is a URL, and nothing is fetched"):
        MediaFolder(root).find("https://example.org/a.jpg")


def test_files_below_are_listed_by_suffix_without_hidden_ones_and_linked_folders(root):
    for name in ("B.JPG", "notes.txt", ".hidden.jpg", ".deep/x.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "inside.jpg").symlink_to(root / "a.jpg")
    names = ["B.JPG", "a.jpg", "images/a.jpg", "images/b.jpg", "images/deep/c.jpg", "inside.jpg"]
    assert MediaFolder(root).files({".jpg"}) == names
    (root / "images/out.jpg").symlink_to(root.parent / "outside" / "d.jpg")
    with pytest.raises(DataError, match=r"images/out.jpg is a link out of the folder"):
        MediaFolder(root).files({".jpg"})


def test_has_tells_whether_find_would_find(root):
    folder = MediaFolder(root, ("images",))
    assert (folder.has("b.jpg"), folder.has("z.jpg")) == (True, False)
    with pytest.raises(DataError, match="leads out of the folder"):
        folder.has("../outside/d.jpg")
