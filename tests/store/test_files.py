"""Files are copied with what is below them, once, whatever links there are."""

from pathlib import Path

from store.files import copy_contents


def test_links_are_followed_and_those_to_a_folder_around_them_left_out(tmp_path: Path) -> None:
    source, beside = tmp_path / "source", tmp_path / "beside"
    for folder in (source / "a", beside):
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text(folder.name)
    (source / "a" / "around").symlink_to(source)
    (source / "linked").symlink_to(beside)
    (beside / "back").symlink_to(source / "a")
    copy_contents(source, tmp_path / "target", lambda path: path.name != "unwanted")
    copied = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*.txt")}
    assert copied == {"a/x.txt", "linked/x.txt", "linked/back/x.txt"}
