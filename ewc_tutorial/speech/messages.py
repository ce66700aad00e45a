"""What the service says and takes, as the OpenAPI documents show it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Problem(BaseModel):
    """Every answer of 4xx or 5xx: one sentence that says what is wrong."""

    detail: str


class Health(BaseModel):
    """The service answers; ``model`` is the version in use, ``training`` the job that runs."""

    status: Literal["ok", "degraded"]
    model: str
    training: str | None
    problem: str | None = Field(None, description="of the disk or the index")


class CorrectionOut(BaseModel):
    """A correction that is whole on disk; ``sha256`` is that of the audio file as it was sent."""

    model_config = ConfigDict(from_attributes=True)

    seq: int = Field(description="counts up in the order of arrival")
    id: str
    created: str
    text: str = Field(description="as the model writes it")
    sent: str = Field(description="the text as it was sent")
    format: Literal["wav", "flac", "mp3", "ogg", "m4a", "webm"]
    rate: int = Field(description="samples per second")
    seconds: float
    bytes: int
    sha256: str


class CorrectionPage(BaseModel):
    """A page of corrections; ask for the next with ``after``, the ``seq`` of the last one here."""

    total: int
    corrections: list[CorrectionOut]


class ArchiveEntry(BaseModel):
    """What became of a correction in an archive: it was kept, or there was a problem."""

    name: str = Field(description="of its recording in the archive")
    new: bool = False
    correction: CorrectionOut | None = None
    problem: str | None = None


class ArchiveOut(BaseModel):
    """What became of an archive."""

    kept: int
    refused: int
    entries: list[ArchiveEntry]


class DeletionOut(BaseModel):
    """What stays of a correction that was deleted."""

    seq: int
    id: str
    created: str
    deleted: str
    reason: str = Field(description="request or retention")
    models: list[str] = Field(description="versions that may have learned from it")


class DeletionPage(BaseModel):
    """A page of deletions; ask for the next with ``after``, the ``seq`` of the last one here."""

    deletions: list[DeletionOut]


class NewText(BaseModel):
    """What was really said."""

    model_config = ConfigDict(extra="forbid")

    text: str


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
    curvature: Literal["diagonal", "kronecker"] | None = Field(
        None, description="form that the Fisher information is kept in"
    )
    replay: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = Field(
        None, description="share of each batch that is earlier speech"
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
    """Word error rates on recordings that nothing was trained on.

    On some of them it was decided which model is served.
    """

    old: float | None = Field(description="on earlier speech, if there is any with texts")
    new: float = Field(description="on corrections")


class Point(BaseModel):
    """A model on the way from the old (0) to the trained weights (1)."""

    fraction: float
    old: float = Field(description="word error rate on earlier speech")
    new: float = Field(description="word error rate on corrections")
    cost: float = Field(
        description="points of word error rate that it costs the old voices, at most, with 95 % "
        "confidence"
    )


class Job(BaseModel):
    """A training."""

    id: str
    state: Literal["waiting", "queued", "running", "done", "rejected", "failed", "cancelled"] = (
        Field(
            description="waiting: another one is at work; queued: its process is about to begin; "
            "rejected: it went to its end, but its model may not be served"
        )
    )
    seq: int
    phase: str
    progress: float = Field(ge=0, le=1)
    seconds_left: float | None = Field(
        None, description="until its end, if it goes on as it did; null while nothing tells"
    )
    created: str
    finished: str | None
    attempts: int = Field(description="how often a process has taken it up")
    lam: float
    word_error_rate_before: Rates | None
    word_error_rate_after: Rates | None
    recordings: dict[str, int] = {}
    left_out: list[str] = Field([], description="recordings that cannot be used, and why")
    fraction: float | None = Field(
        None, description="how far the model went from the old to the trained weights"
    )
    path: list[Point] = Field([], description="what was measured on this way")
    outcome: str | None = Field(None, description="what became of its model, and why")
    removed: list[str] = Field(
        [], description="versions that were deleted, for newer ones take their place"
    )
    losses: list[Loss]
    model_before: str
    model_after: str | None
    error: str | None


class JobPage(BaseModel):
    """A page of trainings; ask for the next with ``before``, the ``seq`` of the last one here."""

    trainings: list[Job]


class ModelOut(BaseModel):
    """A version of the model; one that was put there by hand has hardly more than a name."""

    name: str
    served: bool
    parent: str | None = Field(description="the version that its training began with")
    training: str | None
    last_seq: int = Field(description="the latest correction when it was made")
    recordings: dict[str, int]
    word_error_rate_before: Rates | None
    word_error_rate_after: Rates | None
    fraction: float | None
    outcome: str | None
    plan: dict[str, Any] | None
    importance: bool = Field(description="whether the importance of earlier speech is stored")


class ModelList(BaseModel):
    """The versions, the newest first."""

    models: list[ModelOut]


class Difference(BaseModel):
    """Two versions, the numbers of the corrections that came between them and are still here, and
    the settings of their trainings that differ."""

    old: ModelOut
    new: ModelOut
    corrections: list[int]
    settings: dict[str, tuple[Any, Any]]


class Transcript(BaseModel):
    """What the model in use has heard."""

    text: str
    model: str
