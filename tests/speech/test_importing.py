"""Recordings with a text beside each: in a folder, in an archive, as another server keeps them."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import importing, pairs
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.pairs import by_small_letters, pairs_in_archive, sounds_among, text_for

pytestmark = pytest.mark.timeout(300)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def test_texts_are_found_by_either_name():
    names = [
        "d/audio_0001.wav", "d/text_0001.txt", "NAME.WAV", "name.TXT", "._NAME.WAV", "x.txt",
        "lost.wav", "__MACOSX/d/audio_0001.wav", "audio_7.flac", "audio_7.txt",
    ]  # fmt: skip
    known = by_small_letters(names)
    sounds = sounds_among(names)
    assert sounds == ["NAME.WAV", "audio_7.flac", "d/audio_0001.wav", "lost.wav"]
    found = [text_for(name, known) for name in sounds[:3]]
    assert found == ["name.TXT", "audio_7.txt", "d/text_0001.txt"]
    with pytest.raises(RefusedError, match=r"there is no lost\.txt"):
        text_for("lost.wav", known)


def test_names_that_differ_in_capitals_alone_are_not_mixed_up():
    def found(*names):
        return [text_for(name, by_small_letters(list(names))) for name in sounds_among(names)]

    assert found("A.wav", "A.txt", "a.wav", "a.txt") == ["A.txt", "a.txt"]
    for names in (
        ("A.wav", "A.TXT", "a.wav", "a.txt"),
        ("A.wav", "a.wav", "a.txt"),
        ("A.wav", "A.TXT", "a.txt"),
    ):
        with pytest.raises(RefusedError, match=r"the text of A\.wav must be A\.txt, where"):
            found(*names)


def test_a_small_archive_cannot_become_a_large_one():
    bomb = zipped(
        {"x.wav": b"RIFF" + bytes(50 * 2**20), "x.txt": b"x", "y.wav": b"y", "y.txt": b""}
    )
    assert len(bomb) < 100_000
    (_, bomb_sound, _), (_, sound, _) = pairs_in_archive(io.BytesIO(bomb), 2**20)
    with pytest.raises(RefusedError, match="at most 1,048,576 bytes"):
        bomb_sound()
    assert sound().read() == b"y"


def test_an_archive_of_very_many_files_is_refused_before_they_are_listed(monkeypatch):
    many = zipped({f"{i:0200d}": b"" for i in range(21_000)}, zipfile.ZIP_STORED)
    with monkeypatch.context() as patch:
        patch.setattr(pairs.zipfile, "ZipInfo", None)
        with pytest.raises(RefusedError, match=r"at most 5,000 files.* 5,120,000 bytes, not 5,166"):
            next(pairs_in_archive(io.BytesIO(many), 2**20))


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_a_damaged_archive_is_refused_or_read(position):
    content = bytearray(zipped({"x.wav": bytes(range(256)), "x.txt": b"lion"}))
    content[position % len(content)] ^= 0xFF
    with contextlib.suppress(RefusedError):  # and nothing else is raised
        for _, sound, text in pairs_in_archive(io.BytesIO(content), 2**20):
            assert len(sound().read()) <= 2**20
            assert isinstance(text(), str)


@pytest.fixture
def layout(tmp_path, new_speech):
    """A folder as the server of the source document keeps it, with some that cannot be used."""
    folder = tmp_path / "corrections"
    folder.mkdir()
    for i, (path, text) in enumerate(new_speech[20:26], start=1):
        (folder / f"audio_{i:04d}.wav").write_bytes(path.read_bytes())
        (folder / f"text_{i:04d}.txt").write_text(text.capitalize() + ".\n", encoding="utf-8-sig")
    (folder / "audio_0007.wav").write_bytes(new_speech[26][0].read_bytes())
    (folder / "audio_0008.wav").write_bytes(b"RIFF")
    (folder / "text_0008.txt").write_text("lion")
    (folder / "audio_0009.wav").write_bytes(new_speech[27][0].read_bytes())
    (folder / "text_0009.txt").write_bytes("löwe".encode("cp1252"))
    return folder


PROBLEMS = {
    "audio_0007.wav": "there is no text_0007.txt or audio_0007.txt",
    "audio_0008.wav": "audio", "audio_0009.wav": "UTF-8",
}  # fmt: skip


def test_an_archive_keeps_what_is_good_and_names_the_rest(service, layout, new_speech):
    content = zipped({f"a/{path.name}": path.read_bytes() for path in layout.iterdir()})

    def send():
        answer = service.client.post(
            "/upload/corrections/archive", files={"archive": ("all.zip", content)}
        )
        assert answer.status_code == 200
        return answer.json()

    first = send()
    assert (first["kept"], first["refused"]) == (6, 3)
    for entry in first["entries"]:
        name = entry["name"].removeprefix("a/")
        if name in PROBLEMS:
            assert PROBLEMS[name] in entry["problem"]
            assert entry["correction"] is None
        else:
            assert entry["new"]
            text = new_speech[19 + int(name[6:10])][1]
            assert (entry["correction"]["text"], entry["correction"]["sent"].strip()) == (
                text, text.capitalize() + ".",
            )  # fmt: skip
    assert [e["new"] for e in send()["entries"]] == [False] * 9
    for entry in first["entries"]:
        if entry["correction"]:
            service.client.delete(f"/corrections/{entry['correction']['id']}")


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF", zipped({}), zipped({"x.txt": b"lion"}), zipped({"x.wav": b"RIFF"})[:40]],
    ids=["nothing", "a sound", "an empty one", "a text alone", "the beginning of one"],
)
def test_what_is_no_archive_of_recordings_is_refused(service, content):
    answer = service.client.post(
        "/upload/corrections/archive", files={"archive": ("all.zip", content)}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("archive must ")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command and returns its exit status and what it says on each of the two streams."""

    def run(*line):
        monkeypatch.setattr(sys, "argv", ["importing", *map(str, line)])
        status = 0
        try:
            importing.main()
        except SystemExit as end:  # as the interpreter does with a sentence and a number
            status = end.code if isinstance(end.code, int) else 1
            if status is not end.code:
                print(end.code, file=sys.stderr)
        return status, *capsys.readouterr()

    return run


def test_the_command_imports_a_folder_once(service, layout, command):
    address = service.client.base_url
    status, said, problems = command(layout, "--to", address)
    assert (status, said) == (1, "6 new, 0 there already, 3 refused.\n")
    for name, words in PROBLEMS.items():
        assert any(line.startswith(name) and words in line for line in problems.splitlines())
    assert command(layout, "--to", address)[1] == "0 new, 6 there already, 3 refused.\n"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_command_knows_an_address_of_ipv6(tmp_path, monkeypatch, host):
    monkeypatch.setenv("EWC_SPEECH_HOST", host)
    monkeypatch.setattr(sys, "argv", ["importing", str(tmp_path)])
    asked = []
    monkeypatch.setattr(
        importing, "send_folder", lambda client, _: asked.append(client.base_url) or (1, 0, [])
    )
    importing.main()
    assert (asked[0].host, asked[0].port) == ("::1", 8017)
    monkeypatch.setattr(sys, "argv", ["importing", str(tmp_path), "--to", "http://::1:8017"])
    with pytest.raises(SystemExit, match="^'http://::1:8017' must be an address such as http://"):
        importing.main()


def test_the_command_says_in_a_sentence_that_nobody_answers(layout, command):
    for line in ((layout, "--to", "http://127.0.0.1:9"), (layout / "nothing",)):
        status, said, problems = command(*line)
        assert (status, said, len(problems.splitlines())) == (1, "", 1)
