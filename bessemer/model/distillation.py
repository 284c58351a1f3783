"""Learning from a teacher of whom only the k likeliest words of each place are known.

KL(teacher || student) over k + 1 outcomes: the k words, and "any other". The teacher's probabilities are
taken as they are, not renormalised over the k: a student that learns renormalised ones becomes too sure of
the k and learns that nothing else ever comes (arXiv:2503.16870, section 3, which calls the bucket a ghost
token). NeMo-Aligner has both (`use_k_add_1_logits`); TRL's server distillation adds the bucket. With all of
the vocabulary it is the plain divergence.
Forward and not reverse: it wants the teacher's numbers at the teacher's words, which is what was kept.
Dims: N places, K words of the teacher.
"""

import torch
from torch import Tensor

from bessemer.model.loss import IGNORED
from bessemer.model.token_log_probs import log_rest


def teacher_divergence(student_NK: Tensor, teacher_NK: Tensor, *, has_rest: bool) -> Tensor:
    """[N] fp32 [nat], from log-probabilities of the same words. has_rest: there are other words."""
    share_NK = teacher_NK.exp()
    loss_N = (share_NK * (teacher_NK - student_NK)).sum(-1)
    if not has_rest:
        return loss_N
    teacher_N, student_N = (log_rest(log_probs_NK.logsumexp(-1)) for log_probs_NK in (teacher_NK, student_NK))
    return loss_N + teacher_N.exp() * (teacher_N - student_N)


def taught_words(ids_NK: Tensor, targets_N: Tensor) -> Tensor:
    """The teacher's words where there is a target, and IGNORED elsewhere."""
    return torch.where(targets_N.unsqueeze(-1) == IGNORED, IGNORED, ids_NK)
