"""The table ``lora_tasks``, read as its protocol wants it (notebook 09).

Seeds from 100 on choose each way's λ, where the mean loss of all instances is least; those below
report, paired with the adapter that is merged and begins anew under EWC.
"""

from __future__ import annotations

import pandas as pd

from ewc_tutorial.course import tables
from ewc_tutorial.course.reference import paired_difference

REFERENCE = "restart, EWC"


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Hold every way of learning tasks against ``restart, EWC``, with equal seeds.

    Args:
        rows: of the table ``lora_tasks``.

    Returns:
        By way: ``lam``, ``seeds``, the means of ``old``, ``new``, ``mean`` (nats per token) and
        ``recall``, ``bytes_first`` and ``bytes_last``, and for each of these losses and the recall
        the paired difference to the reference with its standard error, as in ``old_more`` and
        ``old_sem``; NaN for itself.
    """
    rows = rows.assign(better=-rows["mean"])
    runs = {
        way: tables.reported(rows[rows.way == way], ["lam"], by="better").set_index("seed")
        for way in rows.way.unique()
    }
    lines = {}
    for way, mine in runs.items():
        line = {"lam": mine.lam.iloc[0], "seeds": len(mine)}
        line |= {name: mine[name].iloc[0] for name in ("bytes_first", "bytes_last")}
        for name in ("old", "new", "mean", "recall"):
            line[name] = mine[name].mean()
            more = (float("nan"),) * 2
            if way != REFERENCE:
                more = paired_difference(list(mine[name]), list(runs[REFERENCE][name][mine.index]))
            line[f"{name}_more"], line[f"{name}_sem"] = more
        lines[way] = line
    return pd.DataFrame.from_dict(lines, orient="index")
