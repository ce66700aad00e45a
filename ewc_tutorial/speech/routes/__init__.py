"""The routes, by what they are about."""

from ewc_tutorial.speech.routes.corrections import add_corrections
from ewc_tutorial.speech.routes.hearing import add_health, add_transcription
from ewc_tutorial.speech.routes.models import add_models
from ewc_tutorial.speech.routes.trainings import add_trainings
from ewc_tutorial.speech.routes.watching import add_watching

__all__ = [
    "add_corrections",
    "add_health",
    "add_models",
    "add_trainings",
    "add_transcription",
    "add_watching",
]
