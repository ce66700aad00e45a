"""Several tasks with one adapter: the trainings, and what the table ``lora_tasks`` says of them."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

pytest.importorskip("peft")
from ewc_tutorial.course import language, lora_tasks, tables
from ewc_tutorial.course.training import batches
from ewc_tutorial.huggingface import LoraEWC, collator
from experiments.lora_tasks import EACH, WHOLE, run
from experiments.side_by_side import together

#: These load Transformers, which takes as long as many a test.
pytestmark = pytest.mark.slow


def test_adapters_trained_together_are_those_trained_one_after_the_other():
    base, facts = language.tiny_gpt(0, width=8, layers=1), language.instances(people=9)[0]
    data, join = language.items(facts), collator(base)
    draws = torch.Generator().manual_seed(0)
    F = {}

    def adapted(seed: int, lam: float) -> tuple[torch.nn.Module, LoraEWC]:
        model = language.with_adapter(copy.deepcopy(base), rank=2, seed=seed)
        with torch.no_grad():  # frozen weights that differ between the models
            model.base_model.model.transformer.wpe.weight.add_(0.1 * seed)
        ewc = LoraEWC(model, lam, rule="latest")
        for name in ewc.names:
            F.setdefault(name, torch.rand(ewc.shapes()[name], generator=draws))
        ewc.merge(F)
        return model, ewc

    kinds = [(0, 0.0), (1, 30.0)]
    models, ewcs = zip(*(adapted(*kind) for kind in kinds), strict=True)
    together(models, [None, ewcs[1]], data, steps=6, lr=0.02, batch_size=8, seed=3)
    ends = [language.perplexity(model, facts) for model in models]
    alone = []
    for kind in kinds:
        model, ewc = adapted(*kind)
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1, 0, 6)
        order = batches(len(data), 8, 3)
        for _ in range(6):
            adam.zero_grad()
            model(**join([data[int(i)] for i in next(order)])).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            (0.5 * kind[1] * sum((F[n] * D**2).sum() for n, D in ewc.values().items())).backward()
            adam.step()
            falling.step()
        alone.append(language.perplexity(model, facts))
    assert ends == pytest.approx(alone, rel=1e-4)
    assert abs(ends[0] - ends[1]) > 1e-2


def test_the_ways_differ_in_what_they_hold_and_in_nothing_else_before_the_second_task():
    data = language.instances(3, people=4)
    first = language.tiny_gpt(0, width=8, layers=1)
    ways = ("restart, EWC", "kept, EWC", "kept, no EWC", EACH)
    points = [(way, 1.0 if way.endswith(", EWC") else 0.0) for way in ways]

    def of(data: list) -> pd.DataFrame:
        rows = run(0, points, first, data, steps=3) + run(0, [(WHOLE, 1.0)], first, data, steps=3)
        return pd.DataFrame(rows).set_index("way")

    short, long = of(data[:2]), of(data)
    assert short["mean"]["restart, EWC"] == pytest.approx(short["mean"]["kept, EWC"], abs=2e-4)
    assert abs(long["mean"]["restart, EWC"] - long["mean"]["kept, EWC"]) > 2e-4
    assert short.new[EACH] == pytest.approx(short.new["kept, no EWC"], abs=2e-4)
    untrained = language.perplexity(first, data[0])
    assert short.old[EACH] == pytest.approx(torch.tensor(untrained).log().item(), abs=1e-4)
    # 8 → 24, 8 → 8, 8 → 32 and 32 → 8, an A and a B of rank 8 each, in single precision.
    adapter = 4 * 8 * (8 + 24 + 8 + 8 + 8 + 32 + 32 + 8)
    springs = 4 * 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
    assert long.bytes_first.to_dict() == long.bytes_last.to_dict() | {EACH: adapter}
    assert long.bytes_last["kept, no EWC"] == adapter
    assert long.bytes_last[EACH] == 2 * adapter
    assert long.bytes_last["restart, EWC"] == long.bytes_last["kept, EWC"] == adapter + springs
    assert long.bytes_last[WHOLE] == 8 * sum(p.numel() for p in first.parameters())


def test_the_table_is_read_as_its_protocol_wants_it():
    rows = tables.load("lora_tasks")
    report = lora_tasks.compared(rows)
    assert (report.seeds == 5).all()
    runs = {}
    for way, line in report.iterrows():
        of_it = rows[rows.way == way]
        search = of_it[of_it.seed >= 100]
        found = {lam: search[search.lam == lam]["mean"].mean() for lam in set(search.lam)}
        assert line.lam == min(found, key=found.get)
        assert line.lam == 0 or min(found) < line.lam < max(found)  # the search went far enough
        runs[way] = of_it[(of_it.lam == line.lam) & (of_it.seed < 100)].set_index("seed")
        assert runs[way]["mean"].to_numpy() == pytest.approx(
            ((3 * runs[way].old + runs[way].new) / 4).to_numpy(), abs=2e-4
        )
    more = runs["kept, EWC"].old - runs["restart, EWC"].old
    assert report.old_more["kept, EWC"] == pytest.approx(more.mean())
    assert report.old_sem["kept, EWC"] == pytest.approx(more.sem())
