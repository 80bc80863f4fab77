"""Cross-entropy to what the teacher thought: its likeliest tokens one by one, all others as one.

Knows logits and probabilities; knows nothing of adapters, rows or steps. Shapes: n answer tokens, k of the teacher's
likeliest, V vocabulary, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

LOGITS_BYTES_MAX = 32 << 20
"""Logits are made, used and dropped in pieces of at most this much float32; three such pieces exist at once."""
_SMALLEST = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """What the teacher gave for n answer tokens: probabilities [n, k] of `top_ids` [n, k], and the rest [n]."""

    top_ids: torch.Tensor
    top_probabilities: torch.Tensor
    tail: torch.Tensor

    def part(self, start: int, stop: int) -> Targets:
        return Targets(
            top_ids=self.top_ids[start:stop],
            top_probabilities=self.top_probabilities[start:stop],
            tail=self.tail[start:stop],
        )


def distillation_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, targets: Targets, *, with_gradient: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each answer token [n] in float32, and the gradient of their sum by `hidden` [n, H].

    With p of the teacher and q of the student, the loss is -sum p_k log q_k - tail log(1 - sum q_k). Its gradient is
    written out, so that logits never outlive their piece: memory is bounded by `LOGITS_BYTES_MAX`, whatever n and V.
    Source of the top-k loss: "Cartridges" (arXiv 2506.06266); the tail makes it a proper cross-entropy.
    """
    losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    gradient = torch.zeros_like(hidden, dtype=torch.float32)
    piece = max(1, LOGITS_BYTES_MAX // (4 * head.weight.shape[0]))
    for start in range(0, hidden.shape[0], piece):
        stop = min(start + piece, hidden.shape[0])
        part = targets.part(start, stop)
        logits = functional.linear(hidden[start:stop].to(head.weight.dtype), head.weight, head.bias).float()
        losses[start:stop], by_logits = _by_logits(logits, part)
        if with_gradient:
            gradient[start:stop] = (by_logits.to(head.weight.dtype) @ head.weight).float()
    return losses, gradient


def _by_logits(logits: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [n] and their gradient by the logits [n, V]; overwrites the logits."""
    p, tail = targets.top_probabilities, targets.tail
    log_q = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    log_q_top = log_q.gather(1, targets.top_ids)  # [n, k]
    q = log_q.exp_()
    q_top = q.gather(1, targets.top_ids)
    # The rest is summed without the top, not as 1 minus the top, which would cancel.
    q.scatter_(1, targets.top_ids, 0.0)
    rest = q.sum(1).clamp_min(_SMALLEST)
    losses = -(p * log_q_top).sum(1) - tail * rest.log()
    whole = p.sum(1) + tail
    q.mul_((whole - tail / rest)[:, None])
    q.scatter_(1, targets.top_ids, whole[:, None] * q_top - p)
    return losses, q


def student_logprobs(
    hidden: torch.Tensor, head: torch.nn.Linear, top_ids: torch.Tensor, answer_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For scoring: log q of the teacher's tokens [n, k] and of the answers [n], and whether each answer is q's first.

    Bounded as `distillation_loss` is.
    """
    piece = max(1, LOGITS_BYTES_MAX // (4 * head.weight.shape[0]))
    tops, answers, firsts = [], [], []
    for start in range(0, hidden.shape[0], piece):
        part = slice(start, start + piece)
        logits = functional.linear(hidden[part].to(head.weight.dtype), head.weight, head.bias).float()
        firsts.append(logits.argmax(1) == answer_ids[part])
        log_q = logits - torch.logsumexp(logits, dim=1, keepdim=True)
        tops.append(log_q.gather(1, top_ids[part]))
        answers.append(log_q.gather(1, answer_ids[part][:, None])[:, 0])
    return torch.cat(tops), torch.cat(answers), torch.cat(firsts)
