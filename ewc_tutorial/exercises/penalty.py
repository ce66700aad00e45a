from __future__ import annotations

from ewc_tutorial.exercises.core import Exercise

EXERCISES: dict[str, Exercise] = {}
