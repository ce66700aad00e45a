"""What the step of a training does to the loss on old sentences, by finite differences."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="the group 'huggingface' is not installed")

from ewc_tutorial.course import language
from ewc_tutorial.course.language import Fact

FACTS = [Fact("ab ", "c"), Fact("ba c ", "a")]


@pytest.fixture(scope="module")
def model():
    return language.tiny_gpt(width=8, layers=1, heads=2).double()


@pytest.fixture(scope="module")
def step(model):
    g = torch.Generator().manual_seed(0)
    draw = {n: torch.randn(p.shape, generator=g).double() for n, p in model.named_parameters()}
    return {name: 0.02 * values for name, values in draw.items()}


def loss(model, facts=FACTS) -> torch.Tensor:
    """The mean over sentences of −log p, one sentence and one token at a time."""
    total = 0.0
    for fact in facts:
        ids = torch.tensor(language.encode(fact.text))
        log_p = model(ids[None]).logits[0].log_softmax(1)
        total = total - sum(log_p[t, ids[t + 1]] for t in range(len(ids) - 1))
    return total / len(facts)


@torch.no_grad()
def loss_at(model, step, t: float) -> float:
    for name, p in model.named_parameters():
        p.add_(t * step[name])
    value = loss(model).item()
    for name, p in model.named_parameters():
        p.sub_(t * step[name])
    return value


def test_slope_curvature_and_rise_are_those_of_finite_differences(model, step):
    found = language.rise_along(model, FACTS, step)
    here, h = loss_at(model, step, 0.0), 1e-3
    ahead, behind = loss_at(model, step, h), loss_at(model, step, -h)
    assert found["slope"] == pytest.approx((ahead - behind) / (2 * h), rel=1e-4)
    assert found["Hessian"] == pytest.approx((ahead - 2 * here + behind) / (2 * h**2), rel=1e-3)
    assert found["truth"] == pytest.approx(loss_at(model, step, 1.0) - here, rel=1e-6)


def test_the_whole_fisher_matrix_by_the_scores_of_all_tokens(model, step):
    expected = 0.0
    for fact in FACTS:
        ids = torch.tensor(language.encode(fact.text))
        log_p = model(ids[None]).logits[0].log_softmax(1)
        for t in range(len(ids) - 1):
            for token in range(log_p.shape[1]):
                score = torch.autograd.grad(
                    log_p[t, token], list(model.parameters()), retain_graph=True
                )
                along = sum((g * v).sum() for g, v in zip(score, step.values(), strict=True))
                expected += (log_p[t, token].exp() * along**2).item() / 2 / len(FACTS)
    assert language.rise_along(model, FACTS, step)["whole F"] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_left_behind(model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    language.rise_along(model, FACTS, step)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_the_loss_of_a_part_is_that_of_its_labels_alone(model):
    expected = {}
    for part, texts in {"name": ("ab", "ba"), "form": (" ", " c "), "answer": ("c.", "a.")}.items():
        total = 0.0
        for fact, text in zip(FACTS, texts, strict=True):
            ids = torch.tensor([language.encode(fact.text)])
            start = 1 + (len(fact.text) - len(text) if part == "answer" else fact.text.index(text))
            labels = torch.full_like(ids, -100)
            labels[0, start : start + len(text)] = ids[0, start : start + len(text)]
            total += len(text) * model(ids, labels=labels).loss.item()
        expected[part] = total / len(FACTS)
    found = language.loss_by_part(model, FACTS)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(loss(model).item())
