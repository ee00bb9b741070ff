"""Losses between what a student and its teacher give: their answers, and what is inside them.

Each is a scalar, a mean, and zero when the student equals the teacher. A mask [B, L] is not zero
where a row has a token; what stands in the padding counts for nothing and gets no gradient.
"""

from typing import TYPE_CHECKING

from edgekit.examples import IGNORED

if TYPE_CHECKING:
    import torch

# Scores from here down are those of a mask (TinyBERT's code).
_MASKED = -100.0


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


def label_cross_entropy(student: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross entropy with gold labels, the mean over those that are known: a scalar.

    student: logits [..., C]. labels: int64 [...], ``IGNORED`` (-100) where none is known. Zero
    when none is.
    """
    from torch.nn.functional import cross_entropy

    known = labels != IGNORED
    total = cross_entropy(student[known].float(), labels[known], reduction="sum")
    mean: torch.Tensor = total / max(1, int(known.sum()))
    return mean


def state_error(
    student: "torch.Tensor", teacher: "torch.Tensor", mask: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """The mean squared difference over rows, or over tokens, and their numbers: a scalar.

    student, teacher: [B, D], or [B, L, D] with a mask [B, L] as above. TinyBERT's loss of
    embeddings and hidden states: Jiao et al. 2020, arXiv 1909.10351, equations 8 and 9.
    """
    if mask is not None:
        student, teacher = student[mask != 0], teacher[mask != 0]
    return (student.float() - teacher.float()).square().sum() / max(1, student.numel())


def cosine_distance(
    student: "torch.Tensor", teacher: "torch.Tensor", mask: "torch.Tensor"
) -> "torch.Tensor":
    """1 - cos of the states [B, L, D] of each token, the mean over tokens: a scalar.

    Zero when they are equal up to a positive scale. Sanh et al. 2019, DistilBERT, arXiv
    1910.01108, section 3.
    """
    from torch.nn.functional import normalize

    # Half the squared distance of the directions: 1 - cos itself leaves 4e-8 of equal states.
    given, wanted = normalize(student[mask != 0].float()), normalize(teacher[mask != 0].float())
    return (given - wanted).square().sum() / max(1, 2 * len(given))


def attention_scores(
    query: "torch.Tensor",
    key: "torch.Tensor",
    heads: int,
    bias: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """q k / sqrt(width) of each head, before the mask and the softmax: [B, heads, L, L].

    query, key: [B, L, heads * width]. bias: what a family adds by distance, [1, heads, L, L].
    With the same states as query and key these are MiniLM's relations (``attention_divergence``).
    """
    batch, length, total = query.shape
    width = total // heads
    shape = (batch, length, heads, width)
    q = query.reshape(shape).transpose(1, 2)
    k = key.reshape(shape).permute(0, 2, 3, 1)
    scores: torch.Tensor = (q @ k) * width**-0.5
    return scores if bias is None else scores + bias


def attention_error(
    student: "torch.Tensor", teacher: "torch.Tensor", mask: "torch.Tensor"
) -> "torch.Tensor":
    """The mean squared difference of scores over heads and pairs of tokens: a scalar.

    student, teacher: ``attention_scores`` [B, H, L, L]; scores of -100 and below count as 0 in
    both, as in TinyBERT's code. mask: [B, L]; pairs with padding count for nothing. Jiao et al.
    2020, arXiv 1909.10351, equation 7: before the softmax.
    """
    real = mask != 0
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand_as(student)
    given, wanted = student[pairs].float(), teacher[pairs].float()
    given, wanted = given.where(given > _MASKED, 0.0), wanted.where(wanted > _MASKED, 0.0)
    return (given - wanted).square().sum() / max(1, given.numel())


def attention_divergence(
    student: "torch.Tensor", teacher: "torch.Tensor", mask: "torch.Tensor"
) -> "torch.Tensor":
    """KL of attention probabilities, the mean over heads and tokens that attend: a scalar.

    student, teacher: ``attention_scores`` [B, H, L, L], turned into probabilities over the tokens
    of each row here. mask: [B, L]. Of a layer's scores it is the attention transfer of MiniLM
    (Wang et al. 2020, arXiv 2002.10957, equation 5), of the values with themselves its value
    relation (equation 7), and of queries, keys and values each with themselves MiniLM v2's
    relations (arXiv 2012.15828, equation 4).
    """
    from torch.nn.functional import log_softmax

    real = mask != 0
    least = -1e30  # for no token: finite, so that nothing times infinity is asked for
    attends = real[:, None, :].expand(student.shape[:3])
    keys = real[:, None, None, :].expand_as(student)[attends]
    wanted = log_softmax(teacher[attends].float().where(keys, least), dim=-1)
    given = log_softmax(student[attends].float().where(keys, least), dim=-1)
    each = (wanted.exp() * (wanted - given)).where(keys, 0.0)
    return each.sum() / max(1, len(each))
