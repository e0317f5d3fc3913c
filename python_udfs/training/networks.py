"""The sequence models. Input: float32 windows [b, time, k] with NaN for missing, the latest row last.

Preprocessing is part of a network: its medians and scales come from training rows and are exported with it.
Nothing at a time step reads a later one: convolutions are padded on the left alone, attention is masked.

References: Zhang, Zohren & Roberts (2019), DeepLOB: deep convolutional neural networks for limit order books;
Bai, Kolter & Koltun (2018), An empirical evaluation of generic convolutional and recurrent networks (TCN);
Vaswani et al. (2017), Attention is all you need; Jacobs et al. (1991), Adaptive mixtures of local experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
import numpy.typing as npt

from python_udfs.errors import UserError
from python_udfs.scorer.card import ModelType
from python_udfs.training.pytorch import torch

Tensor = torch.Tensor
nn = torch.nn

# What is slow or comes from elsewhere; every other column beside the book is of the tape.
MACRO: Final = (
    "funding_rate",
    "basis_bps",
    "open_interest_log_change",
    "cointegration_residual_z",
    "realized_volatility_60s",
    "realized_volatility_rank",
    "trade_intensity_rank",
    "volatility_ratio",
)
# What the mixture's gate reads.
REGIME: Final = (
    "realized_volatility_60s",
    "realized_volatility_rank",
    "trade_intensity_rank",
    "volatility_ratio",
)
_BOOK: Final = ("bid_gap_bps", "bid_size", "ask_gap_bps", "ask_size")
# Beyond so many scales a value is as large as this: no wild one carries a network away.
_CLIP: Final = 5.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of an input are. book: [4][levels] in the order of _BOOK."""

    book: tuple[tuple[int, ...], ...]
    tape: tuple[int, ...]
    macro: tuple[int, ...]
    regime: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.book[0])

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """Sorts the columns by their names. A level counts where all four of its columns are there."""
        at = {name: i for i, name in enumerate(names)}
        levels = 0
        while all(f"{kind}_{levels + 1}" in at for kind in _BOOK):
            levels += 1
        book = tuple(tuple(at[f"{kind}_{i + 1}"] for i in range(levels)) for kind in _BOOK)
        rest = [name for i, name in enumerate(names) if not any(i in part for part in book)]
        return cls(
            book=book,
            tape=tuple(at[name] for name in rest if name not in MACRO),
            macro=tuple(at[name] for name in rest if name in MACRO),
            regime=tuple(at[name] for name in REGIME if name in at),
        )


class Normalise(nn.Module):
    """(x - median) / scale, clipped; a missing value becomes 0, the median."""

    median: Tensor
    scale: Tensor

    def __init__(self, median: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("median", torch.from_numpy(median))
        self.register_buffer("scale", torch.from_numpy(scale))

    @classmethod
    def fitted(cls, rows: npt.NDArray[np.float32]) -> Self:
        """Median and interquartile range of each column. rows: [n, k]; a column may be all NaN or constant."""
        median = np.zeros(rows.shape[1], dtype=np.float32)
        scale = np.ones(rows.shape[1], dtype=np.float32)
        for i, column in enumerate(rows.T):
            there = column[np.isfinite(column)].astype(np.float64)
            if len(there):
                low, median[i], high = np.quantile(there, [0.25, 0.5, 0.75])
                # the standard deviation of a normal; of what hardly ever moves, its own
                width = (high - low) / 1.349 or there.std()
                # what float32 cannot divide by is no scale
                scale[i] = width if width > np.finfo(np.float32).tiny else 1
        return cls(median, scale)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.clamp((x - self.median) / self.scale, -_CLIP, _CLIP)
        return torch.where(torch.isnan(z), torch.zeros_like(z), z)


class CausalConv(nn.Conv1d):
    """A convolution over time that reads nothing later than its own step: [b, c, time] to [b, c', time]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.left = kernel - 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (self.left, 0)))


class Residual(nn.Module):
    """Two causal convolutions beside a short cut. thin: every second step goes in, the last among them."""

    def __init__(self, channels: int, dropout: float, *, thin: bool) -> None:
        super().__init__()
        self.thin = thin
        self.body = nn.Sequential(
            CausalConv(channels, channels, 3),
            nn.ReLU(),
            nn.Dropout(dropout),
            CausalConv(channels, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.thin:
            x = x[:, :, (x.shape[2] - 1) % 2 :: 2]
        return nn.functional.relu(x + self.body(x))


def tcn(inputs: int, hidden: int, dropout: float, blocks: int) -> nn.Sequential:
    """A causal temporal convolution network: [b, inputs, time] to [b, hidden, steps], the last step being the last.

    Only the last step is read. So a block sees every second step of the one before, in place of dilations 1, 2, 4,
    8: the value at the last step is the same, the work less than half. Four blocks see 61 steps, three 29.
    """
    body = [Residual(hidden, dropout, thin=i > 0) for i in range(blocks)]
    return nn.Sequential(CausalConv(inputs, hidden, 1), nn.ReLU(), *body)


class BookEncoder(nn.Module):
    """The book as a picture, levels by time: [b, time, k] to [b, hidden, time].

    Channels are gap and size of both sides. Space is seen two levels at a time, then whole, and three steps of time.
    """

    index: Tensor

    def __init__(self, layout: Layout, hidden: int) -> None:
        super().__init__()
        if not layout.levels:
            raise UserError(
                "this network reads the book level by level: give it bid_gap_bps_1, bid_size_1, ask_gap_bps_1 "
                "and ask_size_1 at least"
            )
        self.register_buffer("index", torch.tensor([i for part in layout.book for i in part]))
        self.levels = layout.levels
        width = max(hidden // 2, 4)
        # an odd level out gets a pad beside it
        self.pairs = nn.Conv2d(4, width, (1, 2), stride=(1, 2), padding=(0, self.levels % 2))
        self.time = nn.Conv2d(width, width, (3, 1))
        self.whole = nn.Conv2d(width, hidden, (1, (self.levels + 1) // 2))

    def forward(self, z: Tensor) -> Tensor:
        picture = z.index_select(2, self.index).unflatten(2, (4, self.levels)).transpose(1, 2)
        y = nn.functional.leaky_relu(self.pairs(picture))
        y = nn.functional.leaky_relu(self.time(nn.functional.pad(y, (0, 0, 2, 0))))
        return nn.functional.leaky_relu(self.whole(y)).squeeze(3)


class Columns(nn.Module):
    """Some columns at each time, through one linear layer: [b, time, k] to [b, hidden, time]."""

    index: Tensor

    def __init__(self, columns: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(columns, dtype=torch.int64))
        self.linear = nn.Linear(len(columns), hidden)

    def forward(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.linear(z.index_select(2, self.index))).transpose(1, 2)


class SequenceNetwork(nn.Module):
    """A network with its preprocessing: windows to (logits [b, c], the return in units of `fit` [b])."""

    def __init__(self, normalise: Normalise, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.normalise = normalise
        self.head = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )
        self.value = nn.Linear(hidden, 1)

    def states(self, z: Tensor) -> Tensor:
        """[b, hidden, steps] of normalised windows [b, time, k]. A step knows nothing later; the last is read."""
        raise NotImplementedError

    def from_normalised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of normalised windows."""
        last = self.states(z)[:, :, -1]
        return self.head(last), self.value(last).squeeze(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.from_normalised(self.normalise(x))


class DeepLob(SequenceNetwork):
    """Convolutions over the levels of the book, the tape concatenated, and a TCN as the head, not an LSTM."""

    def __init__(
        self, layout: Layout, normalise: Normalise, hidden: int, classes: int, dropout: float
    ) -> None:
        super().__init__(normalise, hidden, classes, dropout)
        self.book = BookEncoder(layout, hidden)
        rest = (*layout.tape, *layout.macro)
        self.rest = Columns(rest, hidden // 2) if rest else None
        self.tcn = tcn(hidden + (hidden // 2 if rest else 0), hidden, dropout, 4)

    def states(self, z: Tensor) -> Tensor:
        parts = [self.book(z)] + ([self.rest(z)] if self.rest else [])
        return cast(Tensor, self.tcn(torch.cat(parts, dim=1)))


class Attention(nn.Module):
    """One block of a transformer, each step seeing itself and what was before: [b, time, hidden] to the same."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.project, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.body = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]  # [b, heads, time, width]
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.body(self.between(x)))


class Teacher(SequenceNetwork):
    """A small transformer over book, tape and macro: the sum of what each says, two steps of time a token."""

    def __init__(
        self,
        layout: Layout,
        normalise: Normalise,
        hidden: int,
        classes: int,
        dropout: float,
        *,
        window: int,
        blocks: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(normalise, hidden, classes, dropout)
        self.book = BookEncoder(layout, hidden)
        self.others = nn.ModuleList(Columns(part, hidden) for part in (layout.tape, layout.macro) if part)
        self.join = CausalConv(hidden, hidden, 2)
        self.position = nn.Parameter(torch.randn((window + 1) // 2, hidden) * 0.02)
        self.blocks = nn.ModuleList(Attention(hidden, heads, dropout) for _ in range(blocks))
        self.last = nn.LayerNorm(hidden)

    def states(self, z: Tensor) -> Tensor:
        token = self.book(z)
        for part in self.others:
            token = token + part(z)
        x = self.join(token)[:, :, (z.shape[1] - 1) % 2 :: 2].transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.last(x)).transpose(1, 2)


class Student(SequenceNetwork):
    """A one-dimensional causal CNN over all columns: small enough for the score path."""

    def __init__(
        self, layout: Layout, normalise: Normalise, hidden: int, classes: int, dropout: float
    ) -> None:
        super().__init__(normalise, hidden // 2, classes, dropout)
        self.tcn = tcn(len(normalise.median), hidden // 2, dropout, 3)

    def states(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.tcn(z.transpose(1, 2)))


class Mixture(SequenceNetwork):
    """Experts, each a student, mixed by a gate that reads volatility and activity at the last step and nothing else."""

    regime: Tensor

    def __init__(
        self,
        layout: Layout,
        normalise: Normalise,
        hidden: int,
        classes: int,
        dropout: float,
        *,
        experts: int = 3,
    ) -> None:
        super().__init__(normalise, experts * (hidden // 2), classes, dropout)
        if not layout.regime:
            raise UserError(f"the mixture's gate reads {', '.join(REGIME)}: give it one of them at least")
        k, width = len(normalise.median), hidden // 2
        self.register_buffer("regime", torch.tensor(layout.regime))
        self.gate = nn.Sequential(nn.Linear(len(layout.regime), 8), nn.ReLU(), nn.Linear(8, experts))
        self.experts = nn.ModuleList(tcn(k, width, dropout, 3) for _ in range(experts))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(experts))
        self.head = nn.Sequential()  # the experts have their own

    def states(self, z: Tensor) -> Tensor:
        return torch.cat([expert(z.transpose(1, 2)) for expert in self.experts], dim=1)

    def shares(self, z: Tensor) -> Tensor:
        """How much each expert counts: [b, experts], rows sum to 1."""
        return torch.softmax(self.gate(z[:, -1].index_select(1, self.regime)), dim=1)

    def from_normalised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        last = self.states(z)[:, :, -1]
        each = torch.stack(
            [
                torch.softmax(head(part), dim=1)
                for head, part in zip(self.heads, last.chunk(len(self.heads), dim=1), strict=True)
            ],
            dim=1,
        )
        mixed = (self.shares(z).unsqueeze(2) * each).sum(dim=1)
        # log probabilities are logits, too
        return torch.log(mixed + 1e-7), self.value(last).squeeze(1)


def build(
    kind: ModelType,
    names: Sequence[str],
    normalise: Normalise,
    *,
    window: int,
    hidden: int,
    classes: int,
    dropout: float,
) -> SequenceNetwork:
    """An untrained network.

    Args:
        kind: which one.
        names: the k columns of its input.
        normalise: fitted on training rows.
        window: time steps of its input.
        hidden: channels, a multiple of 8.
        classes: outputs.

    Raises:
        UserError: the columns it needs are not there, or it is no network.
    """
    if hidden < 8 or hidden % 8:
        raise UserError(f"hidden channels must be a multiple of 8, not {hidden}")
    layout = Layout.of(names)
    match kind:
        case ModelType.DEEPLOB_TCN:
            return DeepLob(layout, normalise, hidden, classes, dropout)
        case ModelType.TEACHER:
            return Teacher(layout, normalise, hidden, classes, dropout, window=window)
        case ModelType.STUDENT:
            return Student(layout, normalise, hidden, classes, dropout)
        case ModelType.MIXTURE:
            return Mixture(layout, normalise, hidden, classes, dropout)
        case _:
            raise UserError(f"{kind} is a model of one row, not a network")
