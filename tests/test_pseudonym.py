"""Pseudonyms: the same again from the same file, nothing without its key, and never half a file."""

import csv
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from ccdstream.errors import OutputError
from ccdstream.pseudonym import HEAD, NameMap, default_map
from ccdstream.report.files import Lock, lock_path


def entered(path: Path, *recordings: str) -> list[str]:
    with NameMap(path) as names:
        return [names.alias(Path(recording)).name for recording in recordings]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def test_a_recording_gets_the_same_pseudonym_again_and_others_get_others(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    first = entered(path, "/in/a.mp4", "/in/b.mp4", "/other/a.mp4", "/in/../in/a.mp4")
    assert len(set(first)) == 3 and first[0] == first[3]
    assert entered(path, "/in/c.mp4", "/in/a.mp4")[1] == first[0]
    assert all(name.startswith("rec-") and len(name) == 16 for name in first)


def test_another_file_gives_other_pseudonyms_since_its_key_is_another(tmp_path: Path) -> None:
    one, other = (entered(tmp_path / name, "/in/a.mp4") for name in ("1.csv", "2.csv"))
    assert one != other


def test_the_file_says_whose_results_are_whose_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    (name,) = entered(path, "/in/DOE,\n JANE.mp4")
    head, key, row = rows_of(path)
    assert head == HEAD and key[0] == "key" and len(bytes.fromhex(key[1])) == 32
    assert row == ["name", name, "/in/DOE,\n JANE.mp4"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["names.csv"]


def test_names_that_are_no_text_are_kept_byte_for_byte(tmp_path: Path) -> None:
    path, odd = tmp_path / "names.csv", os.fsdecode(b"/in/\xff\xfe.mp4")
    (name,) = entered(path, odd)
    assert rows_of(path)[2] == ["name", name, odd]
    assert entered(path, odd) == [name]


@pytest.mark.parametrize("name", ["/in/a\rb.mp4", "/in/a\r\n.mp4", '/in/"a",b.mp4', "=1+1.mp4"])
def test_no_name_makes_the_file_unreadable(tmp_path: Path, name: str) -> None:
    path = tmp_path / "names.csv"
    first = entered(path, name, "/in/a.mp4")
    assert entered(path, name, "/in/a.mp4") == first
    assert rows_of(path)[2] == ["name", first[0], os.path.abspath(name)]


def test_keyed_hashes_differ_by_key_by_kind_and_by_text(tmp_path: Path) -> None:
    with NameMap(tmp_path / "1.csv") as names, NameMap(tmp_path / "2.csv") as others:
        one, other = names.alias(Path("/a")), others.alias(Path("/a"))
    found = {one.keyed("k", "t"), one.keyed("k", "u"), one.keyed("l", "t"), other.keyed("k", "t")}
    assert len(found) == 4 and all(len(each) == 64 for each in found)
    assert one.key.hex() not in repr(one) and repr(one.key) not in repr(one)


def test_after_an_error_nothing_is_entered(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    entered(path, "/in/a.mp4")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), NameMap(path) as names:
        names.alias(Path("/in/b.mp4"))
        raise ZeroDivisionError
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["names.csv"]


def test_a_file_that_needs_nothing_new_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    entered(path, "/in/a.mp4")
    before = path.stat().st_ino
    entered(path, "/in/a.mp4")
    assert path.stat().st_ino == before


def test_what_a_process_that_was_killed_left_of_it_is_gone_with_the_next_new_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "names.csv"
    entered(path, "/in/a.mp4")
    left = tmp_path / ".names.csv.part"
    left.write_text("key")
    left.chmod(0o644)
    entered(path, "/in/b.mp4")
    assert os.listdir(tmp_path) == ["names.csv"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,pseudonym\n",
        "kind,value,original\n",
        "kind,value,original\nkey,zz,\n",
        "kind,value,original\nkey,00ff,\n",
        f"kind,value,original\nkey,{'00' * 32},\nname,rec-1\n",
        f"kind,value,original\nkey,{'00' * 32},\nwhat,rec-1,x\n",
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names.csv"
    path.write_text(text)
    with pytest.raises(OutputError, match=r"names\.csv is no whole list of pseudonyms"):
        entered(path, "/in/a.mp4")
    assert path.read_text() == text and os.listdir(tmp_path) == ["names.csv"]


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        entered(tmp_path / "absent" / "names.csv", "/in/a.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot read"):
        entered(tmp_path / "folder", "/in/a.mp4")


def test_a_file_that_another_process_holds_is_waited_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "names.csv"
    monkeypatch.setattr("ccdstream.pseudonym._WAIT_S", 0.0)
    with (
        Lock(lock_path(tmp_path, "names.csv"), "held"),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        entered(path, "/in/a.mp4")


def _enter_many(path: Path, who: int) -> None:
    for k in range(5):
        entered(path, f"/in/{who}-{k}.mp4")


def test_processes_that_enter_names_at_once_lose_none_and_share_one_key(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_enter_many, args=(path, who)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    rows = rows_of(path)
    assert [kind for kind, _, _ in rows].count("key") == 1
    assert {original for kind, _, original in rows if kind == "name"} == {
        f"/in/{who}-{k}.mp4" for who in range(3) for k in range(5)
    }


def test_the_file_lies_beside_the_results_if_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_map(Path("out")) == tmp_path / "out.names.csv"
    assert default_map(Path("out/")) == tmp_path / "out.names.csv"
    assert default_map(Path(".")) == tmp_path.with_name(f"{tmp_path.name}.names.csv")
