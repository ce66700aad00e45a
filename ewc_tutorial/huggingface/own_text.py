"""Text that a language model writes itself, for an importance without the old data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ewc_tutorial.fisher.measurement import check_count
from ewc_tutorial.fisher.undisturbed import undisturbed
from ewc_tutorial.huggingface.batches import IGNORED
from ewc_tutorial.huggingface.tasks import base_of, checked_task, pad_token_of
from ewc_tutorial.randomness import as_generator


def own_text(
    model: nn.Module,
    n: int,
    max_new_tokens: int,
    *,
    prompt: Any = None,
    batch_size: int = 32,
    generator: torch.Generator | int | None = None,
    **options: Any,
) -> list[dict[str, list[int]]]:
    """Return ``n`` texts drawn from a causal language model, to consolidate where the old data
    cannot be had::

        consolidate(ewc, own_text(model, 500, max_new_tokens=256))

    They are drawn from the model's own distribution: with temperature 1 and from the whole
    vocabulary, whatever the model's ``generation_config`` says (top-k and the like leave out what
    the model holds unlikely, and with it a part of the expectation that F is). Measure before the
    model learns anything new.

    Args:
        model: with ``generate``, with or without a PEFT adapter.
        n: how many.
        max_new_tokens: at which a text without an end token stops.
        prompt: token numbers that each text begins with; by default the model's token for a
            beginning, or else for an end. Its tokens are not the model's and get no label.
        batch_size: texts written at a time.
        generator: of the draws; a number seeds a new one, None means 0. The global random state is
            left as it was.
        options: for ``generate``, such as ``eos_token_id`` where a text ends elsewhere.

    Returns:
        A data set of dicts with ``input_ids`` and ``labels``, the end token included.

    Raises:
        TypeError: a number is no whole one.
        ValueError: the model is no causal language model, a number is not positive, or there is no
            token to begin with.
    """
    task = checked_task(model, None)
    if task != "causal_lm":
        raise ValueError(f"model must be a causal language model to write text, not a {task}.")
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        check_count(name, value, optional=False)
    generator = as_generator(generator)
    base, device = base_of(model), next(model.parameters()).device
    defaults = base.generation_config
    begin = [int(token) for token in _beginning(defaults) if token is not None]
    begin = begin[:1] if prompt is None else torch.as_tensor(prompt).flatten().tolist()
    if not begin:
        raise ValueError(
            "prompt must hold at least one token: the model names none that texts begin with."
        )
    ends = options.pop("eos_token_id", defaults.eos_token_id)
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    whole: dict[str, Any] = {
        "do_sample": True,
        "num_beams": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    pad = pad_token_of(model, task)
    whole |= {"eos_token_id": ends or None, "pad_token_id": pad, "max_new_tokens": max_new_tokens}
    texts: list[dict[str, list[int]]] = []
    with undisturbed(model), torch.no_grad():
        # What `generate` is not told it takes from the model, such as a penalty for repetition.
        base.generation_config = GenerationConfig()
        try:
            while len(texts) < n:
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                rows = torch.tensor([begin] * min(batch_size, n - len(texts)), device=device)
                mask = torch.ones_like(rows)
                generate: Any = model.generate
                written: Tensor = generate(input_ids=rows, attention_mask=mask, **whole | options)
                texts += [_text(row, len(begin), ends) for row in written.tolist()]
        finally:
            base.generation_config = defaults
    return texts


def _beginning(config: Any) -> list[Any]:
    """Return the tokens that a text could begin with, the likeliest first."""
    ends = config.eos_token_id
    return [config.bos_token_id, *(ends if isinstance(ends, list) else [ends])]


def _text(row: list[int], begins: int, ends: list[int]) -> dict[str, list[int]]:
    """Return a row up to its end, labelled where the model has written."""
    stop = next((i + 1 for i, token in enumerate(row) if i >= begins and token in ends), len(row))
    return {"input_ids": row[:stop], "labels": [IGNORED] * begins + row[begins:stop]}
