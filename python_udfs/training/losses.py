"""What the networks are trained on. Pure functions of tensors: logits [b, c] to one loss per row [b].

`target` is a distribution over the classes [b, c]: one-hot, or smoothed.
References: Lin et al. (2017), Focal loss for dense object detection; Szegedy et al. (2016), Rethinking the Inception
architecture (label smoothing); Hinton, Vinyals & Dean (2015), Distilling the knowledge in a neural network.
"""

from __future__ import annotations

from collections.abc import Sequence

from python_udfs.training.pytorch import torch

Tensor = torch.Tensor


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """The labels [b] (0 … c-1) as distributions; `smoothing` of each goes to all classes alike."""
    one_hot = torch.nn.functional.one_hot(labels, classes).to(torch.float32)
    return one_hot * (1 - smoothing) + smoothing / classes


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum target log p."""
    return -(target * torch.log_softmax(logits, dim=1)).sum(dim=1)


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """-sum target (1 - p)^gamma log p: what is easy counts little. gamma = 0 is cross entropy."""
    log_p = torch.log_softmax(logits, dim=1)
    return -(target * (1 - log_p.exp()) ** gamma * log_p).sum(dim=1)


def cost_matrix(
    classes: Sequence[int], *, wrong_way: float = 2.0, false_alarm: float = 1.0, missed: float = 0.5
) -> Tensor:
    """Cost [c, c] of saying the column's class where the row's was true.

    wrong_way: up for down and back. false_alarm: a move said where there was none: fees for nothing. missed: none said.
    """
    return torch.tensor(
        [
            [
                0.0 if true == said else false_alarm if true == 0 else missed if said == 0 else wrong_way
                for said in classes
            ]
            for true in classes
        ]
    )


def asymmetric(logits: Tensor, target: Tensor, cost: Tensor) -> Tensor:
    """Cross entropy and the expected cost of what is said. cost: [c, c], see `cost_matrix`."""
    expected = ((target @ cost) * torch.softmax(logits, dim=1)).sum(dim=1)
    return cross_entropy(logits, target) + expected


def huber(value: Tensor, truth: Tensor, delta: float = 1.0) -> Tensor:
    """Squared within `delta`, linear beyond: [b] of [b]."""
    return torch.nn.functional.huber_loss(value, truth, reduction="none", delta=delta)


def distilled(hard: Tensor, logits: Tensor, teacher: Tensor, *, temperature: float, share: float) -> Tensor:
    """(1 - share) of the hard loss [b] and `share` of the divergence from the teacher's softened probabilities.

    teacher: log probabilities or logits [b, c]. T^2 keeps the gradients of both of one size.
    """
    soft = torch.softmax(teacher / temperature, dim=1)
    said = torch.log_softmax(logits / temperature, dim=1)
    divergence = (soft * (torch.log(soft.clamp_min(1e-12)) - said)).sum(dim=1)
    return (1 - share) * hard + share * temperature**2 * divergence
