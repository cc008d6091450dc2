"""What a plan or a report looks like in a terminal and in a notebook, also of a deep model."""

from __future__ import annotations

import re

import torch
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr


def deep() -> GCN:
    return GCN(4, 8, num_layers=40, out_channels=3)


def rows(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:-1]]


def test_a_deep_plan_is_folded_and_says_everything() -> None:
    plan = qlr.plan(deep(), bits=4)
    shown = rows(str(plan))
    assert shown == ["convs.0-39", "convs.0-39.lin"]
    assert len(plan.to_dict()["modules"]) == 80  # for programs nothing is folded


def test_a_layer_that_differs_is_a_row_of_its_own() -> None:
    plan = qlr.plan(deep(), bits=4, overrides={"convs.7.lin": {"weight_bits": 8}})
    assert rows(str(plan)) == ["convs.0-39", "convs.0-6,8-39.lin", "convs.7.lin"]


def test_a_shallow_plan_is_not_folded() -> None:
    plan = qlr.plan(GCN(4, 8, num_layers=3), bits=4)
    assert len(rows(str(plan))) == len(plan.to_dict()["modules"]) == 6


def test_notebooks_show_what_a_terminal_does() -> None:
    qmodel = qlr.quantize(deep(), bits=4).eval()
    with torch.no_grad():
        qmodel(torch.rand(5, 4), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    for shown in (qlr.plan(deep(), bits=4), qlr.report(qlr.convert(qmodel))):
        in_notebook = shown._repr_html_()
        first = re.findall(r"<tr><td>(.*?)</td>", in_notebook)
        assert first == rows(str(shown))
        assert str(shown).splitlines()[-1] in in_notebook
    assert len(rows(str(qlr.report(qlr.convert(qmodel))))) < 10
