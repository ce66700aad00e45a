"""Sends a folder of recordings with their texts to the service that runs.

    python -m ewc_tutorial.speech.importing FOLDER [--to ADDRESS]

Each is a correction as if somebody had sent it: ``audio_0001.wav`` with ``text_0001.txt``, or
``NAME.wav`` with ``NAME.txt``, in sub-folders as well. What is there already stays as it is, so an
import that was cut off can be repeated. Address and token are those of the settings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.pairs import by_small_letters, read_text, sounds_among, text_for
from ewc_tutorial.speech.settings import read_settings


def send_folder(client: httpx.Client, folder: Path) -> tuple[int, int, list[str]]:
    """Send all pairs below a folder.

    Args:
        client: knows the address of the service and sends the token.
        folder: with the pairs.

    Returns:
        How many are new, how many were there already, and a sentence for each that was refused.

    Raises:
        httpx.HTTPError: the service does not answer, or cannot keep anything now.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    known = by_small_letters(names)
    new, there, refused = 0, 0, []
    for name in sounds_among(names):
        try:
            with open(folder / text_for(name, known), "rb") as file:
                text = read_text(file)
        except RefusedError as error:
            refused.append(f"{name}: {error.sentence}")
            continue
        with open(folder / name, "rb") as sound:
            answer = client.post(
                "/upload/corrections",
                files={"audio": (Path(name).name, sound)},
                data={"text": text},
            )
        if answer.status_code in (413, 415, 422):
            refused.append(f"{name}: {answer.json()['detail']}")
            continue
        answer.raise_for_status()
        new += answer.status_code == 201
        there += answer.status_code == 200
    return new, there, refused


def main() -> None:
    settings = read_settings()
    host = settings.host.strip("[]")
    parser = argparse.ArgumentParser("python -m ewc_tutorial.speech.importing")
    parser.add_argument("folder", type=Path, help="where the recordings and texts are")
    parser.add_argument(
        "--to",
        metavar="ADDRESS",
        default=f"http://{f'[{host}]' if ':' in host else host}:{settings.port}",
        help="of the service [%(default)s]",
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        raise SystemExit(f"{str(arguments.folder)!r} is no folder.")
    token = settings.upload_token or settings.token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    try:
        with httpx.Client(base_url=arguments.to, headers=headers, timeout=120.0) as client:
            new, there, refused = send_folder(client, arguments.folder)
    except httpx.HTTPStatusError as error:
        raise SystemExit(f"{arguments.to}: {error.response.text}") from None
    except httpx.InvalidURL as error:
        raise SystemExit(
            f"{arguments.to!r} must be an address such as http://127.0.0.1:8017 ({error})."
        ) from None
    except httpx.HTTPError as error:
        raise SystemExit(f"{arguments.to} does not answer ({error}): start the service.") from None
    for sentence in refused:
        print(sentence, file=sys.stderr)
    print(f"{new} new, {there} there already, {len(refused)} refused.")
    if refused or not new + there:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
