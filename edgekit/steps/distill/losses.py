"""Losses between a student's and its teacher's outputs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def soft_cross_entropy(
    student: "torch.Tensor",
    teacher: "torch.Tensor",
    temperature: float = 1.0,
    mask: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over rows: a scalar.

    Hinton, Vinyals, Dean. Distilling the knowledge in a neural network. arXiv 1503.02531,
    section 2: the factor T² keeps the gradients' size when T changes.

    student, teacher: logits [B, C], or [B, L, C] for tokens. mask: [B, L], not zero where a row
    has a token; the mean is then over these tokens, and the others have no gradient. Zero when
    the student equals the teacher, and when no token is left. It differs from the cross entropy
    with soft labels by the teacher's own entropy, which has no gradient.
    """
    from torch.nn.functional import log_softmax

    if mask is not None:
        # Before anything is computed: what stands in the padding may be infinite.
        student, teacher = student[mask != 0], teacher[mask != 0]
    wanted = log_softmax(teacher.float() / temperature, dim=-1)
    given = log_softmax(student.float() / temperature, dim=-1)
    each = (wanted.exp() * (wanted - given)).sum(-1)
    return each.sum() / max(1, each.numel()) * temperature**2
