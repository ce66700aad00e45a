"""What the service says and takes, as the OpenAPI documents show it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Problem(BaseModel):
    """Every answer of 4xx: one sentence that says what is wrong."""

    detail: str


class Health(BaseModel):
    """The service answers; ``model`` is the version in use, ``training`` the job that runs."""

    status: Literal["ok"]
    model: str
    training: str | None


class CorrectionOut(BaseModel):
    """A correction that is whole on disk; ``sha256`` is that of the audio file as it was sent."""

    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="counts up in the order of arrival")
    id: str
    created: str
    text: str
    format: Literal["wav", "flac"]
    rate: int = Field(description="samples per second")
    seconds: float
    bytes: int
    sha256: str


class CorrectionPage(BaseModel):
    """A page of corrections; ask for the next with ``after``, the ``seq`` of the last one here."""

    total: int
    corrections: list[CorrectionOut]


class TrainRequest(BaseModel):
    """What one training does otherwise than the settings say."""

    model_config = ConfigDict(extra="forbid")

    lam: Annotated[FiniteFloat, Field(ge=0, le=1e12)] | None = Field(
        None, description="λ; 0 is plain fine-tuning"
    )
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    learning_rate: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    lora_rank: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None, description="rank of LoRA adapters; 0 trains the weights themselves"
    )
    start: Literal["base", "served"] = Field(
        "base",
        description="the weights to begin with: those from before all corrections, so that the "
        "result depends on the corrections and not on how often one has trained, or those in use",
    )


class TrainStarted(BaseModel):
    """The job has been entered; ask ``GET /train/ewc/ID`` how it goes."""

    id: str


class Loss(BaseModel):
    """Mean of −log p(text | sound) on a batch of corrections, and the penalty, at a step."""

    step: int
    loss: float
    penalty: float


class Rates(BaseModel):
    """Word error rates on recordings that were used for nothing else."""

    old: float = Field(description="on earlier speech")
    new: float = Field(description="on corrections")


class Job(BaseModel):
    """A training."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    phase: str
    progress: float = Field(ge=0, le=1)
    created: str
    finished: str | None
    attempts: int = Field(description="how often a process has taken it up")
    lam: float
    word_error_rate_before: Rates | None
    word_error_rate_after: Rates | None
    recordings: dict[str, int]
    losses: list[Loss]
    model_before: str
    model_after: str | None
    error: str | None


class Transcript(BaseModel):
    """What the model in use has heard."""

    text: str
    model: str
