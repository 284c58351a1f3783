"""What a model says of each document of packed rows, on whichever ranks its tokens and the head lie.

    tensor    every rank has all tokens of its rows at the head. Where it has its own part of the vocabulary,
              its gradients are its share of the sum; where the head is whole (classes), all ranks compute the
              same, and each gives its share: the gradient divided by their number.
    context   a rank has some tokens of its rows: sums over a document are added over the ranks, after which
              all compute the same loss, and each counts its share of it.
    pipeline  only the last stage comes here.

Dims: B rows, T tokens, L this rank's tokens of a row, D hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bessemer.data.loader import MicroBatch
from bessemer.data.rows import NO_LOSS
from bessemer.model.decoder import Decoder
from bessemer.model.token_log_probs import VocabularyPart, token_log_probs
from bessemer.parallel.collectives import Group, sum_ranks
from bessemer.parallel.mesh import Mesh
from bessemer.parallel.vocabulary import vocabulary_part


@dataclass(frozen=True)
class Neighbours:
    """The ranks that share a row, as a loss must know them; alone by default."""

    vocabulary: VocabularyPart | None = None  # None: the head is whole here
    context: Group | None = None  # who has other tokens of the same rows
    same_head: int = 1  # ranks that compute the same with a whole head

    def share_of(self, loss: Tensor, *, documents: bool) -> Tensor:
        """This rank's share of a loss, in value over the context axis and in gradient over the tensor axis.

        documents: it comes of whole documents, so that the ranks of the context axis have all computed it.
        Their gradients are each of its own tokens: only the value is divided.
        """
        value = 1.0 / self.context.size() if documents and self.context is not None else 1.0
        gradient = 1.0 / self.same_head
        if value == gradient == 1.0:
            return loss
        return gradient * loss + (value - gradient) * loss.detach()


def neighbours_of(mesh: Mesh, vocab: int, *, whole_head: bool = False) -> Neighbours:
    """whole_head: it is not split over the tensor axis, as one of classes is not."""
    context = mesh.group("context")
    if whole_head:
        return Neighbours(None, context, mesh.degree["tensor"])
    return Neighbours(vocabulary_part(mesh, vocab), context)


def hidden_states(model: Decoder, part: MicroBatch, hidden_BTD: Tensor | None) -> Tensor:
    """[B, L, D]. hidden_BTD: what the pipeline's stage before gave."""
    return model(part.tokens_BT, part.starts_BT, hidden_BTD=hidden_BTD, balance_B=part.balance_B)  # type: ignore[no-any-return]


def target_log_probs(
    model: Decoder, part: MicroBatch, neighbours: Neighbours, hidden_BTD: Tensor | None = None
) -> Tensor:
    """[B, L] fp32: of the target of each of this rank's tokens; 0 where there is none."""
    out_BLD = hidden_states(model, part, hidden_BTD)
    targets_BL = model.model.rows.local(part.targets_BT)
    log_probs = token_log_probs(
        out_BLD.flatten(0, 1), model.head_weight, targets_BL.flatten(), neighbours.vocabulary
    )
    return log_probs.view(targets_BL.shape)


def final_scores(model: Decoder, part: MicroBatch, hidden_BTD: Tensor | None = None) -> Tensor:
    """[B, L] fp32: the one score of a reward head at each document's last token, else 0."""
    out_BLD = hidden_states(model, part, hidden_BTD)
    score_BL = functional.linear(out_BLD, model.head_weight.to(out_BLD.dtype)).squeeze(-1).float()
    return torch.where(model.model.rows.local(is_final(part)), score_BL, 0.0)


def document_sums(model: Decoder, part: MicroBatch, values_BL: Tensor, neighbours: Neighbours) -> Tensor:
    """[B, T]: at the place where each document begins the sum of its values, else 0; alike on all ranks."""
    starts_BL = model.model.rows.local(part.starts_BT)
    sums_BT = values_BL.new_zeros(part.starts_BT.shape).scatter_add(1, starts_BL, values_BL)
    return sums_BT if neighbours.context is None else sum_ranks(sums_BT, neighbours.context)


def document_targets(part: MicroBatch) -> Tensor:
    """[B, T]: at the place where each document begins the number of its targets, else 0."""
    counted_BT = (part.targets_BT != NO_LOSS).long()
    return torch.zeros_like(part.starts_BT).scatter_add(1, part.starts_BT, counted_BT)


def is_final(part: MicroBatch) -> Tensor:
    """[B, T]: whether a token is the last target of its document. Padding belongs to one, and is none."""
    place_T = torch.arange(part.targets_BT.shape[1], device=part.targets_BT.device)
    # The token at a place predicts the next one: a last target is seen one place further.
    seen_BT = torch.where(part.targets_BT != NO_LOSS, place_T + 1, 0)
    last_BT = torch.zeros_like(seen_BT).scatter_reduce(1, part.starts_BT, seen_BT, "amax")
    own_BT = last_BT.gather(1, part.starts_BT)
    return (own_BT == place_T) & (own_BT > 0)
