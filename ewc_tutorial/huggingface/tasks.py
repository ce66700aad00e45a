"""What a Transformers model is for, and by which likelihood its outputs are read."""

from __future__ import annotations

from typing import Any

from torch import nn

from ewc_tutorial.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ewc_tutorial.huggingface.batches import IGNORED
from ewc_tutorial.huggingface.ctc import CTC

#: What a model can be for, and how the names of such models' classes end.
TASKS: dict[str, tuple[str, ...]] = {
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "seq2seq_lm": ("ForConditionalGeneration", "MTModel", "EncoderDecoderModel"),
    "sequence_classification": ("ForSequenceClassification",),
    "token_classification": ("ForTokenClassification",),
    "ctc": ("ForCTC",),
}


def infer_task(model: nn.Module) -> str:
    """Return what the model is for, by the name of its class.

    Raises:
        ValueError: the name does not say.
    """
    name = type(base_of(model)).__name__
    for task, endings in TASKS.items():
        # Models of pictures and texts are named like translators, too.
        if name.endswith(endings) and (task != "seq2seq_lm" or _has_encoder_and_decoder(model)):
            return task
    raise ValueError(
        f"task is not clear from the class {name}: pass task, one of {', '.join(TASKS)}."
    )


def checked_task(model: nn.Module, task: str | None) -> str:
    """Return the task, or the model's own for None.

    Raises:
        ValueError: unknown task, or one that an encoder with a decoder cannot have.
    """
    if task is None:
        return infer_task(model)
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
    name = type(base_of(model)).__name__
    if name.endswith(TASKS["seq2seq_lm"]) and _has_encoder_and_decoder(model):
        if task != "seq2seq_lm":
            raise ValueError(
                f"task must be 'seq2seq_lm' for {name}, an encoder with a decoder, not {task!r}."
            )
    elif task == "seq2seq_lm":
        raise ValueError(f"task 'seq2seq_lm' needs an encoder with a decoder, not a {name}.")
    return task


def likelihood_of(model: nn.Module, task: str) -> Likelihood:
    """Return the likelihood whose −log is the model's own training loss, summed over outputs.

    For regression that loss is Σ (f − y)², so that the variance is ½.
    """
    config = base_of(model).config
    if task == "ctc":
        return CTC(config.pad_token_id, config.ctc_zero_infinity)
    if task == "sequence_classification":
        kind = getattr(config, "problem_type", None)
        if kind == "regression" or (kind is None and config.num_labels == 1):
            return Gaussian(0.5)
        if kind == "multi_label_classification":
            return Bernoulli()
    return Categorical(ignore_index=IGNORED, class_dim=-1)


def pad_token_of(model: nn.Module, task: str) -> int | None:
    """Return the number of the token that the model knows as padding."""
    config: Any = base_of(model).config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    token = getattr(config, "pad_token_id", None)
    # Behind the attention mask a model of the next token never meets its padding.
    return 0 if token is None and task == "causal_lm" else token


def base_of(model: nn.Module) -> Any:
    """Return the Transformers model inside an adapter."""
    inner: Any = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def _has_encoder_and_decoder(model: nn.Module) -> bool:
    return bool(getattr(base_of(model).config, "is_encoder_decoder", False))
