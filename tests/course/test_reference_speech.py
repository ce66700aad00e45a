"""The textbook functions of notebook 10 against PyTorch's CTC loss, jiwer and plain loops."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from random import Random

import jiwer
import pytest
import torch

from ewc_tutorial.course import reference


@pytest.mark.parametrize("blank", [0, 2])
def test_the_paths_that_collapse_to_a_text_have_the_probability_of_pytorchs_ctc_loss(blank):
    frames, symbols = 5, 3
    generator = torch.Generator().manual_seed(blank)
    log_p = torch.randn(frames, symbols, generator=generator, dtype=torch.float64).log_softmax(1)
    total = defaultdict(float)
    for path in product(range(symbols), repeat=frames):
        text = reference.ctc_collapse(list(path), blank)
        total[tuple(text)] += sum(log_p[t, s] for t, s in enumerate(path)).exp().item()
    assert max(map(len, total)) == frames
    for text, probability in total.items():
        loss = torch.nn.functional.ctc_loss(
            log_p.unsqueeze(1), torch.tensor([text], dtype=torch.long).view(1, -1),
            torch.tensor([frames]), torch.tensor([len(text)]), blank=blank, reduction="sum",
        )  # fmt: skip
        assert probability == pytest.approx(loss.neg().exp().item(), rel=1e-9)


def test_word_error_rate_is_jiwers():
    random = Random(0)
    for _ in range(200):
        text, heard = (random.choices("abc", k=random.randint(least, 6)) for least in (1, 0))
        expected = jiwer.wer(" ".join(text), " ".join(heard))
        assert reference.word_error_rate(text, heard) == pytest.approx(expected)


def test_the_lam_by_drift_is_found_by_looking_at_one_after_the_other():
    random = Random(1)
    for most in (-1.0, 0.2, 0.5, 2.0):
        rows = [(10.0 ** random.randint(0, 9), random.random(), random.random()) for _ in range(12)]
        best = None
        for lam, new, drift in rows:
            if drift <= most and (best is None or new < best[1]):
                best = (lam, new)
        expected = best[0] if best else max(lam for lam, _, _ in rows)
        columns = (torch.tensor(column) for column in zip(*rows, strict=True))
        assert reference.lam_by_drift(*columns, most) == pytest.approx(expected)
    limit = reference.lam_by_drift(*torch.tensor([[3.0, 5.0], [0.1, 0.2], [0.5, 0.4]]), 0.5)
    assert limit == 3.0, "a drift of exactly what is allowed is allowed"
