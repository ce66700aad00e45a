"""Progress is kept in one file, or not at all, and never in the way."""

from __future__ import annotations

import json

import nbformat
import pytest

from ewc_tutorial import files
from ewc_tutorial.course import check, progress, publish, reference
from ewc_tutorial.course.exercises.registry import EXERCISES, LESSON_OF


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where progress is kept during the test."""
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "folder" / "progress.json"))
    return tmp_path / "folder" / "progress.json"


def printed(capsys) -> list[str]:
    progress.overview()
    return capsys.readouterr().out.splitlines()


def test_checks_are_remembered_and_the_next_exercise_is_named(file, capsys):
    assert printed(capsys) == [
        "No exercise has been tried yet.",
        "Next: lesson 00, exercises left: 3.",
    ]
    check("accuracy", lambda logits, y: ...)
    assert not file.exists(), "nothing was handed in"
    check("accuracy", lambda logits, y: 0.0)
    assert json.loads(file.read_text()) == {"accuracy": False}
    check("accuracy", reference.accuracy)
    check("accuracy", lambda logits, y: 0.0)
    check("slow_and_long", 0.5, 0.5)
    assert json.loads(file.read_text()) == {"accuracy": True, "slow_and_long": True}
    assert printed(capsys) == [
        "lesson 00: 2 of 3 exercises solved",
        "Next: lesson 00, exercises left: 1.",
    ]
    file.write_text(json.dumps(dict.fromkeys(EXERCISES, True)))
    assert printed(capsys)[-1] == "All exercises are solved."
    assert list(file.parent.iterdir()) == [file]


def test_it_can_be_turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv(progress.VARIABLE, "OFF")
    assert check("accuracy", reference.accuracy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("system", "folder"),
    [("linux", ".local/share"), ("darwin", "Library/Application Support"),
     ("win32", "AppData/Local")],
)  # fmt: skip
def test_where_it_is_by_default(tmp_path, monkeypatch, system, folder):
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA", progress.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(progress.sys, "platform", system)
    assert progress.place() == tmp_path / folder / "ewc-tutorial" / "progress.json"


@pytest.mark.parametrize("broken", ["", "[1]", '{"accuracy": tr'])
def test_a_file_that_cannot_be_read_harms_no_check_and_is_left_as_it_is(file, broken, capsys):
    file.parent.mkdir()
    file.write_text(broken)
    assert progress.load() == {}
    assert check("accuracy", reference.accuracy)
    assert file.read_text() == broken
    assert printed(capsys) == [
        f"{file} cannot be read: nothing is remembered until it is mended or gone."
    ]


def test_exercises_of_another_version_are_no_error(file):
    file.parent.mkdir()
    file.write_text('{"nothing of ours": true}')
    assert progress.load() == {}
    assert check("accuracy", reference.accuracy)
    assert json.loads(file.read_text()) == {"accuracy": True}


def test_a_file_that_cannot_be_written_harms_no_check(file):
    file.parent.write_text("a file where the folder should be")
    assert check("accuracy", reference.accuracy)


def test_what_cannot_be_put_in_its_place_is_removed(file, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(files.os, "replace", refused)
    assert check("accuracy", reference.accuracy)
    assert list(file.parent.iterdir()) == []


def test_without_a_home_nothing_is_kept(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.setattr(progress.Path, "home", nowhere)
    assert progress.place() is None
    assert check("accuracy", reference.accuracy)


def test_every_exercise_has_its_lesson():
    assert list(LESSON_OF) == list(EXERCISES)
    assert (LESSON_OF["gaussian_kl"], LESSON_OF["held_against"]) == (1, 14)


@pytest.mark.slow
def test_executing_a_notebook_keeps_the_ids_and_the_metadata_of_its_cells(tmp_path):
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("⏱ Reading", id="00-000"),
        new.new_code_cell("1 + 1", id="by-hand", metadata={"tags": ["answer"]}),
        new.new_markdown_cell("## Quiz", id="quiz"),
    ]
    path = tmp_path / "short.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    publish.execute(path)
    found = nbformat.read(path, as_version=4).cells
    assert [cell.id for cell in found] == ["00-000", "by-hand", "quiz"]
    assert found[1].metadata == {"tags": ["answer"]}
    assert found[1].outputs[0].data["text/plain"] == "2"


def test_the_readme_is_whole_or_as_it_was(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- course map -->\nold\n<!-- end of course map -->\nλ\n", "utf-8")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "course_map", lambda: "| new |")
    before = readme.stat().st_ino
    publish.update_readme()
    new = "a\n<!-- course map -->\n| new |\n<!-- end of course map -->\nλ\n"
    assert readme.read_text("utf-8") == new
    assert readme.stat().st_ino != before, "another file has taken its place"
    assert list(tmp_path.iterdir()) == [readme]
