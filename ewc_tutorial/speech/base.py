"""The model to begin with: from the hub, from a folder, or a small one that is trained here."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from ewc_tutorial.huggingface import pad_batch
from ewc_tutorial.speech import synthetic
from ewc_tutorial.speech.audio import RATE
from ewc_tutorial.speech.errors import UnusableModelError
from ewc_tutorial.speech.folders import recordings_in
from ewc_tutorial.speech.recogniser import SMALL, Recogniser, no_progress_bars
from ewc_tutorial.speech.settings import GERMAN, PREFIX, TINY, Settings
from ewc_tutorial.speech.versions import BASE, Versions

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
#: The recordings that the small model is trained on, and the steps, of 8 recordings each.
TINY_RECORDINGS = 500
TINY_STEPS = 380
_log = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Make the first version of the model, unless there is one already.

    With the default model and no way to the hub, the small model stands in for it, and the log says
    so; each later start tries again. With the small model come some earlier speech, if there is
    none, and recordings of a voice that is new to it.

    Raises:
        SystemExit: the model that the settings name cannot be had; its message is one sentence.
    """
    models = Versions(settings.data / "models")
    models.recover(settings.worker == "elsewhere")
    wanted, here = settings.model, bool(models.names())
    if here and models.about(BASE).get("instead_of") != wanted:
        _say_if_another_is_wanted(models, wanted)
        return
    about = {"source": wanted}
    if wanted == TINY:
        recogniser = _small(settings)
    else:
        try:
            recogniser = Recogniser(wanted)
        except UnusableModelError as error:
            if wanted != GERMAN:
                raise SystemExit(
                    f"{PREFIX}MODEL must be a folder with a wav2vec 2.0 model and its processor, a "
                    f"name on the hub, or {TINY!r}. {error}"
                ) from None
            _log.warning(
                "%s A small model stands in for it, which knows synthetic speech alone, until a "
                "start finds the other one.",
                error,
            )
            if here:
                return
            recogniser, about = _small(settings), {"source": TINY, "instead_of": wanted}
    if here:
        gone = models.clear()
        _log.warning("%s is here. What was made of the small model goes: %s.", wanted, gone)
    models.add(BASE, recogniser.save, about)
    models.switch(BASE)


def stand_in(models: Versions) -> str | None:
    """Return a sentence if the small model stands in for another one, or None."""
    wanted = models.about(BASE).get("instead_of")
    if wanted is None:
        return None
    return (
        f"The small model stands in for {wanted}, which could not be downloaded: restart the "
        "service when the hub can be reached."
    )


def _small(settings: Settings) -> Recogniser:
    _log.warning("Training the small model, about half a minute.")
    # Not into a folder of somebody's own.
    if settings.old is None and not recordings_in(settings.old_folder):
        synthetic.write_folder(settings.old_folder, synthetic.OLD_SPEAKERS, 150, seed=1)
    examples = settings.data / "examples"
    for i, (wave, text, _) in enumerate(synthetic.recordings([synthetic.NEW_SPEAKER], 20, 5), 1):
        examples.mkdir(exist_ok=True)
        synthetic.write(examples / f"audio_{i:04d}.wav", wave)
        (examples / f"text_{i:04d}.txt").write_text(text + "\n", encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        return train_tiny(seed=settings.seed)
    finally:
        torch.set_num_threads(threads)


def _say_if_another_is_wanted(models: Versions, wanted: str) -> None:
    """Log that a model named by the settings is not used, for the folder has one already."""
    source = models.about(BASE).get("source", wanted)
    if source != wanted:
        _log.warning(
            "%sMODEL is %r, but %s has begun with %r and goes on with it; to begin again, delete "
            "that folder or choose another %sDATA.",
            PREFIX, wanted, models.folder, source, PREFIX,
        )  # fmt: skip


def tiny_recogniser(
    seed: int = 0, letters: str = synthetic.LETTERS, width: int = 48, layers: int = 2
) -> Recogniser:
    """Return the small model, untrained: about 70,000 weights for the letters of ``synthetic``.

    Its first layer begins as a bank of sine and cosine waves from 300 to 3,600 Hz; random ones
    would find the tones, too, in many times the steps.

    Args:
        seed: of the weights.
        letters: what it can write, beside the space.
        width: of all layers, a multiple of 4; half as many tones are in the bank.
        layers: of attention.
    """
    vocabulary = {s: i for i, s in enumerate((*_SPECIAL, *letters))}
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=2 * width, conv_dim=(width, width),
        conv_kernel=(320, 3), conv_stride=(160, 2),
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=9,
        num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
        apply_spec_augment=False, pad_token_id=0, **{SMALL: True},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Wav2Vec2ForCTC(config)
    tones = torch.tensor(np.geomspace(300, 3600, width // 2), dtype=torch.float32)
    phase = 2 * torch.pi * tones[:, None] * torch.arange(320) / RATE
    bank = torch.cat([phase.sin(), phase.cos()]) * torch.hann_window(320) / 10
    model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.data[:, 0] = bank
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(str(Path(folder) / "vocab.json"))
        features = Wav2Vec2FeatureExtractor(
            sampling_rate=RATE, do_normalize=True, return_attention_mask=True
        )
        Wav2Vec2Processor(features, tokenizer).save_pretrained(folder)
        with no_progress_bars():
            model.save_pretrained(folder)
        return Recogniser(folder)


class TinyTraining:
    """The training of the small model on the old speakers, in as many parts as one likes.

    Args:
        seed: of the weights, the recordings and their order.
        steps: in all; the learning rate rises, stays, and falls to zero by the last.
        recordings: how many different ones of the old speakers; or others, with their texts.
        recogniser: what is trained [the small model].

    Attributes:
        recogniser: what is trained.
        losses: the mean of −log p(text | sound) at each step so far.
    """

    def __init__(
        self,
        seed: int = 0,
        steps: int = TINY_STEPS,
        recordings: int | Sequence[tuple[np.ndarray, str]] = TINY_RECORDINGS,
        recogniser: Recogniser | None = None,
    ) -> None:
        self.recogniser = recogniser or tiny_recogniser(seed)
        self.losses: list[float] = []
        self._steps = steps
        if isinstance(recordings, int):
            said = synthetic.recordings(synthetic.OLD_SPEAKERS, recordings, seed)
            recordings = [(wave, text) for wave, text, _ in said]
        self._data = [self.recogniser.sample(wave, text) for wave, text in recordings]
        self._optimizer = torch.optim.Adam(self.recogniser.model.parameters(), lr=3e-3)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda k: min(1.0, (k + 1) / 20, (steps - k) / (0.3 * steps))
        )
        self._generator = np.random.default_rng((seed, 2))

    def run(self, steps: int | None = None) -> None:
        """Go on for so many steps, or to the end."""
        model = self.recogniser.model.train()
        left = self._steps - len(self.losses)
        for _ in range(left if steps is None else min(steps, left)):
            chosen = self._generator.choice(len(self._data), 8, replace=False)
            loss = mean_ctc_loss(model, pad_batch([self._data[i] for i in chosen]))
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            self._optimizer.step()
            self._schedule.step()
            self.losses.append(loss.item())
        model.eval()


def train_tiny(
    seed: int = 0, steps: int = TINY_STEPS, recordings: int = TINY_RECORDINGS
) -> Recogniser:
    """Return the small model, trained; the arguments are as for :class:`TinyTraining`."""
    training = TinyTraining(seed, steps, recordings)
    training.run()
    return training.recogniser


def mean_ctc_loss(model: Wav2Vec2ForCTC, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean over the batch's recordings of −log p(text | sound)."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    log_p = model(**inputs).logits.log_softmax(-1).transpose(0, 1)
    frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
    labels = batch["labels"]
    return functional.ctc_loss(
        log_p, labels[labels >= 0], frames, (labels >= 0).sum(1),
        blank=model.config.pad_token_id, reduction="sum", zero_infinity=True,
    ) / len(labels)  # fmt: skip
