"""The textbook functions of notebook 10 against PyTorch's CTC loss, jiwer and a simulated disk."""

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


STEPS = ("write", "sync file", "rename", "sync folder", "answer")


def kept_on_every_disk(steps: tuple[str, ...]) -> bool:
    """Follow every disk that a power cut could leave behind.

    Each write is a new version of the file, numbered from 1; version 0 is empty.
    """
    version, answered = 0, None
    complete: set[int] = set()  # versions whose content is on the disk
    named, names_on_disk = None, {None}  # the version that has the final name; what may be there
    for step in steps:
        if step == "write":
            version += 1
        elif step == "sync file":
            complete.add(version)
        elif step == "rename":
            named = version
            names_on_disk = names_on_disk | {named}
        elif step == "sync folder":
            names_on_disk = {named}
        else:
            answered = version
        for name in names_on_disk:
            if name is not None and name not in complete:
                return False  # half a file has its final name
            if answered is not None and (name is None or name < answered):
                return False  # what was promised is not there
    return True


def test_a_promise_is_kept_if_no_disk_that_a_power_cut_can_leave_breaks_it():
    beginnings = [(), STEPS, STEPS[:3]]
    kept = 0
    for start, length in product(beginnings, range(5)):
        for rest in product(STEPS, repeat=length):
            steps = (*start, *rest)
            assert reference.promise_kept(list(steps)) == kept_on_every_disk(steps), steps
            kept += kept_on_every_disk(steps)
    assert kept > 100
