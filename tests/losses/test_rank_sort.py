"""Rank & Sort Loss against the authors' code (golden vectors) and a loop from the paper."""

from __future__ import annotations

import pytest
import torch
from conftest import GoldenReader
from test_alrp import RTOL, close

from rankdet.losses.rank_sort import RankSortLoss, rank_sort_loss
from rankdet.ops.rank import ordered

CASES = [
    "all_above", "all_below", "bf16", "delta0", "edge", "equal", "extreme", "extreme_d05", "init",
    "iou_const", "iou_ties", "iou_ties_score_ties", "iou_zero_is_negative", "large",
    "p1_no_reach", "p2_n0", "p5_only_ignored", "small", "small_d05", "ties_neg", "ties_pos",
    "tiny_p1", "trained",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("by_bits", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(
    golden: GoldenReader,
    case: str,
    by_bits: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ordered, "_MATRIX_UP_TO", 0 if by_bits else 10**6)
    if case == "delta0":  # the authors' relations are rounded to float32 there
        monkeypatch.setitem(RTOL, torch.float64, 1e-7)
    data = golden(f"rs_{case}.npz")
    logits = torch.from_numpy(data["logits"]).to(dtype).requires_grad_()
    labels = torch.from_numpy(data["targets"]).to(dtype)
    # Their labels are IoUs, so a positive with IoU 0 is a negative; ours says so explicitly.
    targets, ious = labels.sign(), labels[labels > 0]
    terms = rank_sort_loss(
        logits, targets, ious, delta=float(data["delta"]), eps=float(data["eps"])
    )
    (by_ranking,) = torch.autograd.grad(terms.ranking, logits, retain_graph=True)
    (by_sorting,) = torch.autograd.grad(terms.sorting, logits, retain_graph=True)
    (by_both,) = torch.autograd.grad(terms.ranking + terms.sorting, logits)
    close(terms.ranking, data["ranking_loss"], dtype, "ranking_loss")
    scale = abs(float(data["sorting_loss"])) + 1
    assert abs(terms.sorting.item() - data["sorting_loss"]) <= RTOL[dtype] * scale
    close(by_ranking, data["grad_logits_ranking_only"], dtype, "grad_logits_ranking_only")
    close(by_both, data["grad_logits"], dtype, "grad_logits")
    close(by_ranking + by_sorting, data["grad_logits"], dtype, "sum of both gradients")


def test_each_term_has_its_own_upstream_gradient() -> None:
    logits = torch.randn(300, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(300) < 0.2).int()
    ious = torch.rand(int(targets.sum()))
    ranking, sorting = rank_sort_loss(logits, targets, ious)
    (r,) = torch.autograd.grad(ranking, logits, retain_graph=True)
    (s,) = torch.autograd.grad(sorting, logits, retain_graph=True)
    assert float(s.abs().max()) > 0
    assert (s[targets == 0] == 0).all()  # sorting is among positives only
    (weighted,) = torch.autograd.grad(0.3 * ranking - 7 * sorting, logits)
    torch.testing.assert_close(weighted, 0.3 * r - 7 * s, rtol=1e-12, atol=1e-15)


def test_equals_a_loop_written_from_the_paper() -> None:
    delta = 0.5
    logits = (2 * torch.randn(90, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(-1, 2, (90,))
    positives = (targets == 1).nonzero().squeeze(1).tolist()
    negatives = (targets == 0).nonzero().squeeze(1).tolist()
    ious = torch.rand(len(positives), dtype=torch.float64).mul(8).round() / 8  # ties and zeros
    iou = dict(zip(positives, ious.tolist(), strict=True))
    score = logits.tolist()

    def step(x: float) -> float:
        return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)

    ranking = sorting = 0.0
    by_ranking, by_sorting = [0.0] * 90, [0.0] * 90
    for i in positives:
        above = {k: step(score[k] - score[i]) for k in positives}
        false = {j: step(score[j] - score[i]) for j in negatives}
        error = sum(false.values()) / (sum(above.values()) + sum(false.values()))
        ranking += error
        by_ranking[i] -= error
        for j in negatives:
            if false[j]:
                by_ranking[j] += error * false[j] / sum(false.values())
        better = {k: h for k, h in above.items() if iou[k] >= iou[i]}
        worse = {k: h for k, h in above.items() if iou[k] < iou[i]}
        current = sum(h * (1 - iou[k]) for k, h in above.items()) / sum(above.values())
        target = sum(h * (1 - iou[k]) for k, h in better.items()) / sum(better.values())
        if sum(worse.values()) > 1e-10:
            sorting += current - target
            by_sorting[i] -= current - target
            for k, h in worse.items():
                by_sorting[k] += (current - target) * h / sum(worse.values())
    terms = rank_sort_loss(logits, targets, ious, delta=delta)
    (r,) = torch.autograd.grad(terms.ranking, logits, retain_graph=True)
    (s,) = torch.autograd.grad(terms.sorting, logits)
    count = len(positives)
    assert terms.ranking.item() == pytest.approx(ranking / count, rel=1e-12)
    assert terms.sorting.item() == pytest.approx(sorting / count, rel=1e-12)
    for result, expected in ((r, by_ranking), (s, by_sorting)):
        wanted = torch.tensor(expected, dtype=torch.float64) / count
        torch.testing.assert_close(result, wanted, rtol=1e-11, atol=1e-15)


def test_a_positive_of_iou_zero_stays_a_positive() -> None:
    logits = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    terms = rank_sort_loss(logits, torch.tensor([1, 1, 0]), torch.tensor([0.0, 0.8]))
    (grad,) = torch.autograd.grad(terms.ranking, logits)
    assert grad[0] < 0  # pulled up; as a negative it would be pushed down


def test_a_wrong_number_of_ious_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ious must have one entry for each of the 2 positives"):
        rank_sort_loss(torch.zeros(4), torch.tensor([1, 0, 1, -1]), torch.zeros(3))


def test_the_module_is_the_function() -> None:
    logits, targets, ious = torch.randn(20), torch.arange(20) % 2, torch.rand(10)
    module = RankSortLoss(delta=0.4, eps=1e-3)
    assert module(logits, targets, ious) == rank_sort_loss(
        logits, targets, ious, delta=0.4, eps=1e-3
    )
