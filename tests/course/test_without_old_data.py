"""Trainings side by side, and what the table ``without_old_data`` says of them."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("transformers")
from ewc_tutorial import EWC
from ewc_tutorial.course import language, tables, without_old_data
from ewc_tutorial.course.training import batches
from ewc_tutorial.huggingface import collator
from experiments.side_by_side import side_by_side

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow


def test_trainings_side_by_side_are_those_one_after_the_other():
    model, facts = language.tiny_gpt(0, width=8, layers=1), language.instances(people=9)[0]
    data, join = language.items(facts), collator(model)
    F = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([value.flatten() for value in F.values()])
    lams, budget = (0.0, 3.0), {"lr": 0.02, "batch_size": 8, "seed": 3}
    ends = side_by_side(model, data, torch.stack([lam * flat for lam in lams]), steps=6, **budget)
    losses = []
    for lam, end in zip(lams, ends, strict=True):
        alone, together = copy.deepcopy(model), copy.deepcopy(model)
        ewc = EWC(alone, lam)
        ewc.merge(F)
        adam = torch.optim.AdamW(alone.parameters(), lr=0.02, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1, 0, 6)
        order = batches(len(data), 8, 3)
        for _ in range(6):
            adam.zero_grad()
            alone(**join([data[int(i)] for i in next(order)])).loss.backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
            ewc.add_gradient_()
            adam.step()
            falling.step()
        torch.nn.utils.vector_to_parameters(end, together.parameters())
        # Adam makes steps of what is rounding error alone, as for the biases of attention's keys:
        # the functions are what must agree.
        losses.append([language.perplexity(net, facts) for net in (alone, together)])
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-4)
    assert losses[1][0] == pytest.approx(losses[1][1], rel=1e-4)
    assert abs(losses[0][0] - losses[1][0]) > 1e-2


def test_the_table_is_read_as_its_protocol_wants_it():
    rows = tables.load("without_old_data")
    report = without_old_data.compared(rows)
    assert (report.seeds == 5).all()
    for source, line in report.iterrows():
        of_it = rows[rows.source == source]
        found = {
            lam: np.mean(
                [(r.old + r.new) / 2 for r in of_it.itertuples() if r.seed >= 100 and r.lam == lam]
            )
            for lam in set(of_it.lam)
        }
        assert line.lam == min(found, key=found.get)
    own, old = (
        rows[(rows.source == s) & (rows.lam == report.lam[s]) & (rows.seed < 100)]
        .set_index("seed")
        .old
        for s in ("own text", "old data")
    )
    more = own - old
    assert report.old_more["own text"] == pytest.approx(more.mean())
    assert report.old_sem["own text"] == pytest.approx(pd.Series(more).sem())
