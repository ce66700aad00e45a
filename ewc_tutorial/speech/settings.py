"""The service's settings, from environment variables that begin with ``EWC_SPEECH_``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import num2words
from pydantic import Field, FiniteFloat, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "EWC_SPEECH_"
#: The German wav2vec 2.0 of Facebook AI: 315 million weights, downloaded from the hub at first use.
GERMAN = "facebook/wav2vec2-large-xlsr-53-german"
#: The name of the small model that the service trains itself, on synthetic speech.
TINY = "tiny"
MIN_TOKEN = 16


class Settings(BaseSettings):
    """All settings; the environment variable is the name in capitals after ``EWC_SPEECH_``.

    Raises:
        ValidationError: a value is out of range, or the address is public and there is no token.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True)

    data: Path = Field(Path("speech_data"), description="folder for everything that is kept")
    old: Path | None = Field(
        None, description="folder of earlier speech, NAME.wav with NAME.txt [DATA/old]"
    )
    database: str | None = Field(
        None, repr=False, description="of the index: postgresql://USER@HOST/NAME [a file in DATA]"
    )
    storage: str | None = Field(
        None, repr=False, description="of recordings and texts: s3://BUCKET/PREFIX [DATA]"
    )
    worker: Literal["here", "elsewhere"] = Field(
        "here", description="who runs the trainings: the service, or workers on other machines"
    )
    model: str = Field(
        GERMAN, description="what to begin with: a name on the hub, a folder, or 'tiny'"
    )
    host: str = Field("127.0.0.1", description="address; a public one needs a token")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8017, description="0 takes any free one")
    token: SecretStr | None = Field(
        None, description="if set, every route but /health wants 'Authorization: Bearer TOKEN'"
    )
    upload_token: SecretStr | None = Field(
        None, description="another token, which may send corrections and do nothing else"
    )
    origins: str = Field(
        "",
        description="web pages that may use the service: 'https://a.example, http://localhost:3000'",
    )

    lam: Annotated[FiniteFloat, Field(ge=0)] | None = Field(
        None, description="λ, strength of the penalty [0 with replay; 10 without]"
    )
    curvature: Literal["diagonal", "kronecker"] = Field(
        "diagonal", description="form that the Fisher information is kept in"
    )
    replay: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        0.5, description="share of each batch that is earlier speech with texts"
    )
    old_budget: Annotated[FiniteFloat, Field(ge=0)] = Field(
        5.0, description="points of word error rate that a training may cost the old voices"
    )
    fisher_samples: Annotated[int, Field(ge=1)] = Field(
        200, description="earlier recordings that importance is measured on"
    )
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="optimizer steps of a training [150, or as many as read all corrections]"
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="recordings per step; replay needs 2"
    )
    learning_rate: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(
        None, description="of AdamW, after a warm-up [3e-5; 2e-3 for the small model]"
    )
    lora_rank: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="rank of LoRA adapters; 0 trains the weights themselves"
    )
    freeze_encoder: bool | None = Field(
        None, description="leave the convolutions as they are [true; false for the small model]"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(
        25, description="steps between two checkpoints"
    )
    hold_out: Annotated[int, Field(ge=2)] = Field(
        5, description="one correction in so many is kept for measuring, never trained on"
    )
    max_tests: Annotated[int, Field(ge=1)] = Field(
        100, description="earlier recordings that the word error rate is measured on, at most"
    )
    keep_versions: Annotated[int, Field(ge=1)] = Field(
        5, description="newest versions that stay, beside the base, the served one and its parent"
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="threads of a training; 0 leaves it to PyTorch"
    )
    seed: int = Field(0, description="of everything random in a training")

    normalise: bool = Field(
        True, description="take marks out of texts and write numbers in words, where it is clear"
    )
    language: str = Field("de", description="of the numbers, as num2words names it")
    retention_days: Annotated[FiniteFloat, Field(gt=0)] | None = Field(
        None, description="corrections older than this are deleted [never]"
    )

    log_format: Literal["text", "json"] = Field("text", description="of the log's lines")
    max_bytes: Annotated[int, Field(ge=1024)] = Field(
        20 * 2**20, description="largest upload in bytes"
    )
    max_archive_bytes: Annotated[int, Field(ge=1024)] = Field(
        500 * 2**20, description="largest archive of corrections in bytes"
    )
    max_seconds: Annotated[FiniteFloat, Field(gt=0)] = Field(30.0, description="longest recording")
    max_characters: Annotated[int, Field(ge=1)] = Field(500, description="longest text")

    @model_validator(mode="after")
    def _nobody_gets_in(self) -> Settings:
        for name in ("token", "upload_token"):
            secret = getattr(self, name)
            if secret is not None and len(secret.get_secret_value()) < MIN_TOKEN:
                raise ValueError(
                    f"{PREFIX}{name.upper()} must have at least {MIN_TOKEN} characters; python -c "
                    "'import secrets; print(secrets.token_urlsafe())' makes one."
                )
        if self.upload_token is not None and self.upload_token == self.token:
            raise ValueError(f"{PREFIX}UPLOAD_TOKEN must not be {PREFIX}TOKEN, which may do all.")
        if self.upload_token is not None and self.token is None:
            raise ValueError(f"{PREFIX}UPLOAD_TOKEN needs {PREFIX}TOKEN, for all other requests.")
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"{PREFIX}HOST {self.host!r} can be reached from other machines, so "
                f"{PREFIX}TOKEN must be set; or use 127.0.0.1."
            )
        return self

    @model_validator(mode="after")
    def _index_is_postgresql(self) -> Settings:
        kind = (self.database or "postgresql:").partition(":")[0]
        if kind not in ("postgresql", "postgres"):
            raise ValueError(
                f"{PREFIX}DATABASE must be an address such as postgresql://USER@HOST/NAME, not of "
                f"the kind {kind!r}; without it the index is a file in {PREFIX}DATA."
            )
        if self.worker == "elsewhere" and self.database is None:
            raise ValueError(
                f"{PREFIX}WORKER can only be elsewhere where {PREFIX}DATABASE is set, for workers "
                "take the trainings from there."
            )
        return self

    @model_validator(mode="after")
    def _storage_is_an_address(self) -> Settings:
        if self.storage is not None and "://" not in self.storage:
            raise ValueError(
                f"{PREFIX}STORAGE must be an address such as s3://BUCKET/PREFIX or file:///FOLDER; "
                f"without it recordings are kept in {PREFIX}DATA."
            )
        return self

    @model_validator(mode="after")
    def _pages_are_named(self) -> Settings:
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(
                    f"{PREFIX}ORIGINS must be addresses such as https://speech.example.org, "
                    f"without a path and separated by commas, but has {origin!r}."
                )
        return self

    @model_validator(mode="after")
    def _replay_has_room(self) -> Settings:
        if self.replay and self.batch_size < 2:
            raise ValueError(
                f"{PREFIX}REPLAY must be 0 with a {PREFIX}BATCH_SIZE of 1: a batch with replay has "
                "at least one recording of either kind."
            )
        return self

    @model_validator(mode="after")
    def _old_is_not_new(self) -> Settings:
        corrections = (self.data / "corrections").resolve()
        old = self.old_folder.resolve()
        if old == corrections or corrections in old.parents or old in corrections.parents:
            raise ValueError(
                f"{PREFIX}OLD must not share a folder with the corrections, for importance is "
                "measured on what the model must not forget, not on what it is about to learn."
            )
        return self

    @model_validator(mode="after")
    def _numbers_can_be_read(self) -> Settings:
        if self.language not in num2words.CONVERTER_CLASSES:
            known = " ".join(sorted(num2words.CONVERTER_CLASSES))
            raise ValueError(f"{PREFIX}LANGUAGE must be one of {known}, not {self.language!r}.")
        return self

    @property
    def allowed_origins(self) -> list[str]:
        return [origin.strip().rstrip("/") for origin in self.origins.split(",") if origin.strip()]

    @property
    def spelling(self) -> str | None:
        """The language that texts are normalised in; None leaves them as they are."""
        return self.language if self.normalise else None

    @property
    def old_folder(self) -> Path:
        return self.data / "old" if self.old is None else self.old

    @property
    def index(self) -> Path | str:
        """Where the index is, as :class:`~ewc_tutorial.speech.database.Database` takes it."""
        return self.database or self.data / "service.sqlite3"

    def to_worker(self) -> dict[str, Any]:
        """Return what another process needs to have the same settings, the token not among it."""
        return self.model_dump(mode="json", exclude={"token", "upload_token", "host"})


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(**overrides: Any) -> Settings:
    """Return the settings of the environment.

    Raises:
        SystemExit: they are not usable; its message is one sentence.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"{PREFIX}{str(part).upper()}: " for part in first["loc"][:1])
        raise SystemExit(name + first["msg"].removeprefix("Value error, ")) from None
