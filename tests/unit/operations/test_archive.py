"""An archive is complete or does not exist, and damage is detected before it is used."""

import json
import stat
import zipfile

import pytest

from include.operations import archive

CONTENT = b"row\n" * 5000


@pytest.fixture
def made(tmp_path):
    target = tmp_path / "folder" / "backup.zip"
    with archive.writing(target) as writer:
        with writer.member("ledger.jsonl") as into:
            into.write(CONTENT)
        writer.finish({"made_at": "now"})
    return target


def check(file):
    with archive.reading(file) as reader:
        return reader.manifest


def test_it_reads_what_was_written_and_is_its_owners_alone(made):
    assert check(made)["made_at"] == "now"
    with archive.reading(made) as reader, reader.member("ledger.jsonl") as member:
        assert member.read() == CONTENT
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_a_backup_overwrites_nothing(made):
    with pytest.raises(archive.ArchiveError, match="exists already"), archive.writing(made):
        pass
    check(made)


def test_broken_off_there_is_none(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        archive.writing(tmp_path / "b.zip") as writer,
        writer.member("ledger.jsonl") as into,
    ):
        into.write(CONTENT)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(archive.ArchiveError, match="this archive does not exist: .*none.zip"):
        check(tmp_path / "none.zip")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(made, share):
    content = made.read_bytes()
    made.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(archive.ArchiveError, match="is damaged"):
        check(made)


def test_a_flipped_byte_anywhere_in_the_content_is_refused(made):
    content = bytearray(made.read_bytes())
    with zipfile.ZipFile(made) as file:
        starts = {
            info.filename: info.header_offset + 30 + len(info.filename) + len(info.extra) for info in file.infolist()
        }
    for start in starts.values():
        for offset in (20, 30):
            damaged = bytearray(content)
            damaged[start + offset] ^= 0xFF
            made.write_bytes(damaged)
            with pytest.raises(archive.ArchiveError, match="is damaged"):
                check(made)


@pytest.mark.parametrize("forge", ["rows", "manifest"])
def test_an_archive_that_was_packed_again_with_other_content_is_refused(made, forge):
    with zipfile.ZipFile(made) as file:
        members = {name: file.read(name) for name in file.namelist()}
    if forge == "rows":
        members["ledger.jsonl"] = b"other\n"
    else:
        members["manifest.json"] = members["manifest.json"].replace(b"now", b"then")
    with zipfile.ZipFile(made, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(archive.ArchiveError, match="was changed after the backup"):
        check(made)


def test_a_newer_format_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FORMAT", 99)
    with archive.writing(tmp_path / "b.zip") as writer:
        writer.finish({"airloop": "9.9"})
    monkeypatch.undo()
    with pytest.raises(archive.ArchiveError, match="is of format 99, made by Airloop 9.9; this one reads 1"):
        check(tmp_path / "b.zip")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "b.zip").write_text(json.dumps({"format": 1}))
    with pytest.raises(archive.ArchiveError, match="is damaged"):
        check(tmp_path / "b.zip")
