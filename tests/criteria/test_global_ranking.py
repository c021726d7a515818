"""Criteria with one ranking of all processes do what one process with the whole batch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranking_shards import CRITERIA, history, in_processes
from torch import distributed
from torch.testing import assert_close

from rankdet.assign.max_iou import MaxIoUAssigner
from rankdet.criteria import ALRPCriterion, APClassification, RankSortCriterion, SelfBalance

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="torch was built without distributed"
)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Any]]]]:
    """What each of three processes found, one of them without objects."""
    return in_processes(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CRITERIA)
def test_losses_gradients_and_balance_are_those_of_the_big_batch(
    name: str, processes: list[dict[str, list[dict[str, Any]]]]
) -> None:
    wanted = history(name, slice(0, 4))
    for process in processes:
        for ours, theirs in zip(process[name], wanted, strict=True):
            assert_close(ours["gradients"], theirs["gradients"], **EXACT)
            # Of AP Loss, each process adds the boxes that it has.
            assert_close(ours["mean" if name == "ap" else "total"], theirs["total"], **EXACT)
            for part, value in theirs["parts"].items():
                if "positives" not in part and (name, part) != ("ap", "localisation"):
                    assert_close(ours["parts"][part], value, msg=f"{part} of {name}", **EXACT)
    first, nothing, *_, last = wanted
    assert max(float(x.abs().max()) for x in first["gradients"]) > 0
    assert float(nothing["parts"]["classification"]) == 0
    if "alrp" in name:
        changed = name == "alrp"  # the learned one waits for an optimiser
        assert (float(last["parts"]["balance"]) != float(first["parts"]["balance"])) == changed
    counts = [float(process[name][0]["parts"]["positives"]) for process in processes]
    assert sum(counts) == float(first["parts"]["positives"])
    assert counts[1] == 0


def test_with_one_process_both_rankings_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = history("alrp", slice(0, 4))
    monkeypatch.setitem(CRITERIA, "alrp", lambda: ALRPCriterion(MaxIoUAssigner(), SelfBalance()))
    for ours, theirs in zip(history("alrp", slice(0, 4)), found, strict=True):
        assert torch.equal(ours["total"], theirs["total"])


def test_another_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="ranking must be one of 'local', 'global', got 'all'"):
        ALRPCriterion(MaxIoUAssigner(), SelfBalance(), ranking="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ranking must be one of 'local', 'global', got 'all'"):
        RankSortCriterion(MaxIoUAssigner(), ranking="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ranking must be one of 'local', 'global', got 'all'"):
        APClassification(ranking="all")  # type: ignore[arg-type]
    assert "ranking=global" in str(RankSortCriterion(MaxIoUAssigner(), ranking="global"))
