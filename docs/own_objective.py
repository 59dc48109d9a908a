import torch

from tokensieve import Objective, TokenStats


def late_excess(ratio: float = 0.6, skip: int = 16) -> Objective:
    """The top ``ratio`` by excess behind a document's first ``skip`` tokens; where the student is unsure they weigh more."""

    def weigh(stats: TokenStats) -> torch.Tensor:
        score = stats.need("nll") - stats.need("ref_nll")
        there = stats.valid & (stats.need("document_position") >= skip)
        score = score.masked_fill(~there, -torch.inf)
        bound = score.flatten().topk(max(1, int(ratio * there.numel()))).values[-1]
        return (there & (score >= bound)) * (1 + stats.need("entropy"))  # float, 0 where there is no target

    needs = frozenset({"nll", "ref_nll", "entropy", "document_position"})
    return Objective("late_excess", weigh, needs, scope="batch", denominator="weight", options={"ratio": ratio})
