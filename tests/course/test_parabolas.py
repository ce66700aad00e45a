"""Linear regression on permuted digits, against NumPy and the definition of the penalty."""

from __future__ import annotations

import numpy as np
import pytest

from ewc_tutorial.course import parabolas, permuted_tasks
from ewc_tutorial.course.parabolas import RIDGE, Parabola


@pytest.fixture(scope="module")
def data():
    found = permuted_tasks(3, seed=1)
    return found, [Parabola.of(task) for task in found]


def squared_error(task, theta: np.ndarray) -> float:
    """½ mean ‖θᵀx − y‖² + ½ ridge ‖θ‖², sample by sample."""
    x, y = (part.numpy() for part in task.train.tensors)
    rows = [
        np.append(row, 1.0) @ theta - np.eye(10)[label] for row, label in zip(x, y, strict=True)
    ]
    return 0.5 * np.mean([row @ row for row in rows]) + 0.5 * RIDGE * (theta**2).sum()


def test_costs_are_differences_of_the_loss_that_is_meant(data):
    found, tasks = data
    theta = parabolas.joint_optimum(tasks)
    for task, cost in zip(found, parabolas.costs(tasks, theta), strict=True):
        x, y = (part.numpy().astype(float) for part in task.train.tensors)
        X = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        stacked = np.concatenate([X / len(x) ** 0.5, RIDGE**0.5 * np.eye(65)])
        target = np.concatenate([np.eye(10)[y.astype(int)] / len(x) ** 0.5, np.zeros((65, 10))])
        own = np.linalg.lstsq(stacked, target, rcond=None)[0]
        expected = squared_error(task, theta.numpy()) - squared_error(task, own)
        assert cost == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("rule", ["separate", "latest"])
def test_each_task_ends_where_loss_and_penalty_are_lowest(data, rule, whole, lam):
    """One term per task, as the rules define them, and a zero of the whole gradient."""
    tasks, ends = data[1], []
    for t in range(len(tasks)):
        ends.append(parabolas.learn(tasks[: t + 1], rule, whole=whole, lam=lam).numpy())
    for t, theta in enumerate(ends):
        gradient = tasks[t].H.numpy() @ theta - tasks[t].C.numpy()
        for s in range(t):
            F = tasks[s].H.numpy()
            F = F if whole else np.diag(np.diag(F))
            anchor = ends[s] if rule == "separate" else ends[t - 1]
            gradient += lam * F @ (theta - anchor)
        np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_latest_with_the_whole_matrix_is_joint_training(data):
    tasks = data[1]
    ours = parabolas.learn(tasks, "latest", whole=True)
    np.testing.assert_allclose(ours, parabolas.joint_optimum(tasks), atol=1e-8)


def test_another_rule_is_refused(data):
    with pytest.raises(ValueError, match="rule must be separate or latest, not 'online'"):
        parabolas.learn(data[1], "online", whole=True)
