"""A wav2vec 2.0 recogniser with CTC: sound to text, and text to labels."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Processor
from transformers.utils import logging

from ewc_tutorial.huggingface import pad_batch
from ewc_tutorial.speech.audio import RATE
from ewc_tutorial.speech.errors import RefusedError, UnusableModelError
from ewc_tutorial.speech.normalising import normalised

#: Marks the small model of this course in its configuration.
SMALL = "ewc_tutorial_small"
#: Recordings per forward pass when transcribing.
_BATCH = 8


class Spelling:
    """What a model can write, and how much of it in how much time.

    Args:
        processor: whose tokenizer has one token per character.
    """

    def __init__(self, processor: Wav2Vec2Processor) -> None:
        tokenizer = processor.tokenizer
        self._space = tokenizer.word_delimiter_token
        letters = {
            token for token in tokenizer.get_vocab() if len(token) == 1 and token != self._space
        }
        self.letters = frozenset(letters - set(tokenizer.all_special_tokens))
        self.ids = tokenizer.convert_tokens_to_ids([*sorted(self.letters), self._space])
        has_lower = any(c != c.upper() for c in self.letters)
        has_upper = any(c != c.lower() for c in self.letters)
        self._case = str if has_lower == has_upper else str.lower if has_lower else str.upper

    def clean(self, text: str, max_characters: int, language: str | None = None) -> str:
        """Return the text as the model would write it: NFC, its case, single spaces.

        Args:
            text: as it was sent.
            max_characters: what it may have in the end.
            language: if it is given, marks that are not spoken go and numbers become words of it.

        Raises:
            RefusedError: nothing is left, it is too long, or it cannot all be written.
        """
        text = self._case(unicodedata.normalize("NFC", " ".join(text.split())))
        if language is not None and len(text) <= 10 * max_characters:
            text = self._case(normalised(text, self.letters, language))
        if not text:
            raise RefusedError("text must not be empty.")
        if len(text) > max_characters:
            raise RefusedError(
                f"text must have at most {max_characters} characters, not {len(text)}."
            )
        unknown = sorted(set(text) - self.letters - {" "})
        if unknown:
            shown = " ".join(f"{c!a}" for c in unknown[:5])
            raise RefusedError(
                f"text has characters that the model cannot write: {shown}. It can write "
                f"{''.join(sorted(self.letters))} and spaces."
            )
        return text


class Recogniser:
    """A model with its processor, on the CPU or wherever the model is moved, in float32.

    Args:
        source: a folder, or a name on the hub.

    Raises:
        UnusableModelError: what is there cannot be loaded, is no wav2vec 2.0 with a CTC head, has
            weights that are no numbers, or fewer outputs than its vocabulary needs.
    """

    def __init__(self, source: str | Path) -> None:
        try:
            with no_progress_bars():
                kind = PretrainedConfig.get_config_dict(source)[0].get("model_type")
                if kind != Wav2Vec2Config.model_type:
                    raise UnusableModelError(f"its configuration is of {kind!r}, not 'wav2vec2'")
                self.processor = Wav2Vec2Processor.from_pretrained(source)
                self.model, found = Wav2Vec2ForCTC.from_pretrained(
                    source, dtype=torch.float32, output_loading_info=True
                )
            self.model.eval()
            self.spelling = Spelling(self.processor)
            self._check(found["missing_keys"])
        except Exception as error:  # whatever Transformers and its parsers may raise
            why = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise UnusableModelError(f"The model {str(source)!r} cannot be used: {why}.") from error

    def _check(self, missing: Iterable[str]) -> None:
        if any(name.startswith("lm_head") for name in missing):
            raise UnusableModelError("it has no CTC head, so what it would write is random")
        for name, weight in self.model.state_dict().items():
            if not weight.isfinite().all():
                raise UnusableModelError(f"{name} has values that are no finite numbers")
        symbols = [self.model.config.pad_token_id, *self.spelling.ids]
        if max(symbols) >= self.model.config.vocab_size:
            raise UnusableModelError(
                f"its vocabulary goes up to {max(symbols)}, but it has "
                f"{self.model.config.vocab_size} outputs"
            )

    def save(self, folder: Path) -> None:
        """Write model and processor to a folder."""
        with no_progress_bars():
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def sample(self, wave: np.ndarray, text: str | None = None) -> dict[str, Any]:
        """Return one sample as the model takes it.

        Args:
            wave: (samples,) at 16 kHz.
            text: its transcript; None leaves the labels out.
        """
        values = self.processor(wave, sampling_rate=RATE, return_tensors="pt").input_values[0]
        sample: dict[str, Any] = {"input_values": values}
        # Only models whose encoder normalises over the channels have learned to use a mask.
        if self.processor.feature_extractor.return_attention_mask:
            sample["attention_mask"] = torch.ones(len(values), dtype=torch.long)
        if text is not None:
            sample["labels"] = torch.tensor(self.processor.tokenizer(text).input_ids)
        return sample

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Join samples: without a mask where the model has not learned to use one."""
        batch = pad_batch(samples)
        if "attention_mask" not in samples[0]:
            batch.pop("attention_mask", None)
        return batch

    @torch.no_grad()
    def logits(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Return per recording the logits (frames, symbols), without padding."""
        training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        found: list[Tensor] = []
        for start in range(0, len(waves), _BATCH):
            samples = [self.sample(wave) for wave in waves[start : start + _BATCH]]
            batch = {name: value.to(device) for name, value in self.collate(samples).items()}
            rows = self.model(**batch).logits.cpu()
            found += [
                row[: self.frames(len(s["input_values"]))]
                for row, s in zip(rows, samples, strict=True)
            ]
        self.model.train(training)
        return found

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """Return the texts: the best symbol of each frame, repeats merged, blanks removed."""
        paths = [row.argmax(-1) for row in self.logits(waves)]
        return [self.processor.tokenizer.decode(path).strip() for path in paths]

    def frames(self, n_samples: int) -> int:
        """Return how many frames the model makes of so many samples."""
        return int(self.model._get_feat_extract_output_lengths(n_samples))

    def check_length(self, seconds: float) -> None:
        """Check that the model can be trained on a recording of this length.

        Training masks stretches of frames (SpecAugment), and one such must fit into it.

        Raises:
            RefusedError: it is too short.
        """
        config = self.model.config
        masks = config.apply_spec_augment and config.mask_time_prob > 0
        needed = config.mask_time_length if masks else 1
        frames = self.frames(int(seconds * RATE))
        if frames < needed:
            raise RefusedError(
                f"audio is too short for training: this model needs {needed} frames at once, and "
                f"{seconds:.2f} seconds have {max(0, frames)}."
            )

    def check_room(self, text: str, seconds: float) -> None:
        """Check that a text can be read off a recording: CTC needs one frame per character, and one
        more between two that are the same.

        Raises:
            RefusedError: it is too long for it.
        """
        needed = len(text) + sum(a == b for a, b in itertools.pairwise(text))
        frames = self.frames(int(seconds * RATE))
        if needed > frames:
            raise RefusedError(
                f"text is too long for its recording: it needs {needed} frames, and "
                f"{seconds:.2f} seconds have {frames}."
            )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep Transformers quiet while it reads and writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def word_error_rate(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Return the word error rate: substitutions, insertions and deletions per word of ``texts``."""
    return float(jiwer.wer(list(texts), list(heard)))
