"""How a network is built and trained. Without PyTorch, so that a command line can name its options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from python_udfs.errors import UserError


class Loss(StrEnum):
    CROSS_ENTROPY = "cross_entropy"
    FOCAL = "focal"
    ASYMMETRIC = "asymmetric"


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How a network is built and trained. The defaults fit the demo in seconds."""

    hidden: int = 32
    dropout: float = 0.1
    epochs: int = 12
    patience: int = 3  # epochs without a better validation loss before it stops
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    validation_share: float = 0.15  # the last rows of training: they decide when to stop, and train nothing
    embargo_us: int = 0  # how long a label must have been known before the first of them
    loss: Loss = Loss.CROSS_ENTROPY
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    huber: float = 0.0  # weight of the regression on the winsorised return
    level_dropout: float = 0.0  # chance of a level of the book to be hidden from a sample
    time_jitter: int = 0  # a sample's window may end up to so many buckets earlier; never later
    temperature: float = 2.0  # of distillation
    teacher_share: float = 0.7
    balance: float = 0.05  # how much unequal use of a mixture's experts costs
    # More gain little at this size, and the bits would depend on how many cores there are.
    threads: int = 1
    device: str = "auto"  # a GPU if there is one

    def check(self) -> None:
        """Raises UserError: an option out of its range."""
        shares = {
            "dropout": self.dropout,
            "validation_share": self.validation_share,
            "level_dropout": self.level_dropout,
        }
        shares |= {"label_smoothing": self.label_smoothing, "teacher_share": self.teacher_share}
        wrong = [
            f"{name} in [0, 1)" for name, x in shares.items() if not 0 <= x < 1 and name != "teacher_share"
        ]
        wrong += [] if 0 <= self.teacher_share <= 1 else ["teacher_share in [0, 1]"]
        whole = {
            "epochs": self.epochs,
            "patience": self.patience,
            "batch": self.batch,
            "threads": self.threads,
        }
        wrong += [f"{name} >= 1" for name, x in whole.items() if x < 1]
        positive = {
            "learning_rate": self.learning_rate,
            "temperature": self.temperature,
            "validation_share": self.validation_share,
        }
        wrong += [f"{name} > 0" for name, x in positive.items() if not x > 0]
        least = {
            "focal_gamma": self.focal_gamma,
            "huber": self.huber,
            "time_jitter": self.time_jitter,
            "balance": self.balance,
        }
        least |= {"weight_decay": self.weight_decay, "embargo_us": self.embargo_us}
        wrong += [f"{name} >= 0" for name, x in least.items() if not x >= 0]
        if wrong:
            raise UserError(f"options of a network: {', '.join(wrong)}")
