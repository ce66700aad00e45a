"""The table of other packages' Fisher information: what it says of results that are known."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
import torch
from fisher_oracle import batched_fisher, loop_fisher
from torch import nn

pytest.importorskip("sklearn")
from benchmarks import rival_entries, rivals

OURS = tuple(r for r in rival_entries.RIVALS if r.package == "ewc-tutorial")
ABSENT = rival_entries.Rival("no-such-package", "F", rival_entries.calls.ours("exact"), "")


@pytest.fixture
def setting():
    """A network and samples with a last batch that is smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, 3 * torch.randn(40, 3), torch.randint(3, (40,))


def test_the_oracles_are_those_of_the_definition(setting):
    known, batch = rivals.oracles(*setting), rivals.calls.BATCH
    model, x, y = setting
    for name, expected in (
        ("exact", loop_fisher(model, x)),
        ("empirical", loop_fisher(model, x, y, "empirical")),
        ("batch mean, by size", batched_fisher(model, x, y, batch)),
    ):
        torch.testing.assert_close(known[name], expected)
    parts = [batched_fisher(model, x[i : i + batch], y[i : i + batch], batch) for i in (0, batch)]
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    torch.testing.assert_close(known["batch mean"], mean)


def test_a_result_is_named_with_its_factor_or_not_at_all(setting):
    known = rivals.oracles(*setting)
    sums = {name: 40 * value for name, value in known["empirical"].items()}
    found = rivals.compared(sums, known)
    assert found["equal_to"] == "empirical"
    assert found["factor"] == pytest.approx(40)
    ratios = torch.cat([(sums[n] / known["exact"][n]).flatten() for n in sums])
    assert found["ratio"] == pytest.approx(ratios.median().item())
    mixed = {name: value + known["exact"][name] for name, value in known["empirical"].items()}
    found = rivals.compared(mixed, known)
    assert (found["equal_to"], found["factor"], found["error"]) == ("", None, None)


def test_a_run_adds_what_is_missing_and_keeps_the_rest(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rivals, "settings", lambda: {"MLP": setting})
    monkeypatch.setattr(sys, "argv", ["rivals"])
    other = dict.fromkeys(rivals.COLUMNS, 1.0) | {"model": "MLP", "package": "other", "call": "f"}
    other |= {"version": "1", "torch": "2", "equal_to": None}
    pd.DataFrame([other]).to_csv(tmp_path / "rivals.csv", index=False)
    rivals.main(tmp_path, (*OURS, ABSENT))
    assert "no-such-package is not installed here: F left out" in capsys.readouterr().out
    table = rivals.stored(tmp_path / "rivals.csv")
    assert list(table.package) == ["ewc-tutorial"] * 3 + ["other"]
    assert list(table.equal_to[:3]) == ["exact", "empirical", "batch mean, by size"]
    assert table.factor[:3].tolist() == pytest.approx([1, 1, 1])
    rivals.main(tmp_path, (*OURS, ABSENT))
    assert rivals.stored(tmp_path / "rivals.csv").equals(table)
    page = (tmp_path / "rivals.md").read_text()
    assert "| fisher_diagonal, exact | exact | 1 |" in page


def test_the_page_is_that_of_the_table():
    table = rivals.stored(rivals.RESULTS / "rivals.csv")
    assert (rivals.RESULTS / "rivals.md").read_text(encoding="utf-8") == rivals.markdown(table)
