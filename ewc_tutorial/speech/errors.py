"""What the service refuses, as exceptions that carry the sentence and the HTTP status."""

from __future__ import annotations


class RefusedError(ValueError):
    """A request or an input that cannot be accepted.

    Attributes:
        sentence: what is wrong and what would be right.
        status: the HTTP status to answer with, 4xx.
    """

    def __init__(self, sentence: str, status: int = 422) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status


class AlreadyServedError(RuntimeError):
    """Another server works on the same folder."""


class UnusableModelError(ValueError):
    """A folder or a name on the hub that gives no model which could be served; one sentence."""


class UnusableIndexError(ValueError):
    """An address of a database that gives no index; one sentence."""


class NotLearnedError(RuntimeError):
    """A training that cannot have taught anything good; one sentence says why."""


class UnusableStorageError(ValueError):
    """An address of a storage that recordings cannot be kept in; one sentence."""


class StorageError(OSError):
    """The storage of the recordings cannot be used now."""
