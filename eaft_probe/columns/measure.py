"""Hidden states → columns, through the head in chunks: never a (tokens × vocabulary) tensor."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import torch

from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.batches import TokenBatch
from eaft_probe.model.head import Head
from eaft_probe.model.loading import CausalLM

# Logits of one product with the head. The product wants many rows (256 rows of 49,152: 300 µs a
# row; 32 rows: 550 µs), memory few.
PRODUCT_BYTES = {"cpu": 64_000_000, "cuda": 256_000_000}
# Logits that the statistics go through at once. Rows of 49,152 on two threads: 240 µs a row with
# 1 MB, 155 with 4 MB, 125 with 8 or 12 MB.
SLICE_BYTES = {"cpu": 8_000_000, "cuda": 256_000_000}
# The k largest are looked for among V / BLOCK columns of maxima: 4 µs a row, torch.topk 16 µs.
BLOCK = 64
# Stands for −∞ in logits and logarithms, which keeps 0 · (−∞) out of the sums. Far below any
# finite logit, so that a divergence is not cut short where the model gives a token p = e⁻³⁰⁰.
SMALLEST = -1e4


class TokenColumns:
    """Equal-length named columns of measured tokens. Refuses a tensor with a graph.

    No dataclass: FSDP2 looks into those, and would round the columns to bfloat16.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: dict[str, torch.Tensor]) -> None:
        assert len({len(c) for c in columns.values()}) <= 1, "columns differ in length"
        assert not any(c.requires_grad for c in columns.values()), "a column has a graph"
        self.columns = columns  # each (N,)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]


@dataclass(frozen=True)
class Reference:
    """Another model at the same positions."""

    head: Head
    hidden: torch.Tensor  # (N, D')


@torch.inference_mode()
def measure(
    model: CausalLM,
    batch: TokenBatch,
    statistics: Sequence[Statistic],
    reference: CausalLM | None = None,
) -> TokenColumns:
    """The statistics of every trained token of the batch, in the order of `batch.targets()`."""
    rows, columns, labels = batch.targets()
    hidden, theirs = _states(model, batch, rows, columns), None
    if reference is not None:
        theirs = Reference(reference.head, _states(reference, batch, rows, columns))
    return measure_states(model.head, hidden, labels, statistics, theirs)


def _states(
    model: CausalLM, batch: TokenBatch, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """(N, D) hidden states that predict the trained tokens."""
    states = model.hidden(batch.input_ids, torch.from_numpy(batch.prefix).long())
    return states[rows.to(states.device), columns.to(states.device)].to(model.head.weight.device)


def full_precision(like: torch.Tensor) -> torch.autocast:
    """Distributions are in float32 even where the body is not: autocast would round the sums over
    V to bfloat16 (0.004 nats of entropy, 0.12 of KL)."""
    return torch.autocast(like.device.type, enabled=False)


@torch.inference_mode()
def measure_states(
    head: Head,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    statistics: Sequence[Statistic],
    reference: Reference | None = None,
) -> TokenColumns:
    """(N, D) hidden states and (N,) labels → N values of each statistic."""
    parts = _logit_slices(head, hidden)
    return measure_slices(parts, head, hidden, labels, statistics, reference)


def measure_slices(
    parts: Iterable[tuple[slice, torch.Tensor]],
    head: Head,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    statistics: Sequence[Statistic],
    reference: Reference | None = None,
) -> TokenColumns:
    """As `measure_states`, of rows with their (n, V) float32 logits, which do not survive it."""
    labels = labels.to(hidden.device)
    # Filled in place: thousands of small results, kept until the end, would fragment the memory of
    # the large buffers of each batch (128 MB more at the peak on 40 rows of GSM8K).
    columns = {s.name: torch.empty(len(hidden), dtype=getattr(torch, s.dtype)) for s in statistics}
    scratch = Scratch()
    with full_precision(hidden):
        theirs = reference_slices(reference)
        for part, logits in parts:
            d = LogitSlice(logits, labels[part], hidden[part], head, next(theirs), scratch)
            for s in statistics:
                columns[s.name][part] = s.compute(d)
    return TokenColumns(columns)


def _logit_slices(head: Head, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, their (n, V) logits) for all rows, few enough at once for the statistics."""
    for start, logits in logit_chunks(head, hidden):
        for rows in slices(logits):
            yield slice(start + rows.start, start + rows.stop), logits[rows]


def reference_slices(reference: Reference | None) -> Iterator[torch.Tensor | None]:
    """The logits of the reference, in step with those of the model; None without end for none."""
    if reference is None:
        return repeat(None)
    return (logits for _, logits in _logit_slices(reference.head, reference.hidden))


def logit_chunks(head: Head, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, (n, V) logits) for all rows in large products; the next overwrites the last."""
    chunk = max(1, PRODUCT_BYTES.get(hidden.device.type, 256_000_000) // (4 * head.vocab_size))
    buffer = hidden.new_empty((min(chunk, len(hidden)), head.vocab_size), dtype=torch.float32)
    for start in range(0, len(hidden), chunk):
        states = hidden[start : start + chunk]
        yield start, head.logits(states, out=buffer[: len(states)])


def slices(rows: torch.Tensor, vocab: int | None = None) -> Iterator[slice]:
    """Rows of a product, (n, V) or (n,) of `vocab`, that the statistics go through at once."""
    size = SLICE_BYTES.get(rows.device.type, 256_000_000)
    step = max(1, size // (4 * (vocab or rows.shape[1])))
    for at in range(0, len(rows), step):
        yield slice(at, min(at + step, len(rows)))


class Scratch:
    """Two (n, V) float32 tensors to work in, the same for slice after slice.

    Fresh memory costs more than the work in it: varentropy took 310 µs a row of 49,152 in a new
    tensor of 4 MB, 16 µs in this one.
    """

    def __init__(self) -> None:
        self._pair: torch.Tensor | None = None  # (2, rows of the largest slice yet, V)

    def pair(self, like: torch.Tensor) -> torch.Tensor:
        """(2, n, V), with anything in it."""
        if self._pair is None or self._pair.shape[1] < len(like):
            self._pair = like.new_empty((2, *like.shape))
        return self._pair[:, : len(like)]


class LogitSlice:
    """The next-token distributions of n positions, as statistics read them.

    Works in place: `logits` (n, V) float32 do not survive it, nor does a slice survive the next one
    with its `scratch`. `hidden` (n, D) and `head` only where norms or gradients beyond the logits
    are asked for. `shifted` is logits − max, `others_squared` the Σ P² of all tokens but the label.
    Everything is float32 except ids and ranks, and (n,) unless another shape is given.
    Sums over V are in float32; entropy = ln Z − Σ P · shifted has no large terms that cancel.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        hidden: torch.Tensor | None = None,
        head: Head | None = None,
        reference: torch.Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self.labels, self.reference = labels, reference
        self.hidden, self._head = hidden, head
        at = labels[:, None]
        label_logit = logits.gather(1, at)
        self.top, likeliest = _largest(logits, 20)  # (n, 20), (n,)
        self.maximum = self.top[:, :1].clone()
        buffer, self._scratch = (scratch or Scratch()).pair(logits)
        self.rank: torch.Tensor = _count(torch.gt, logits, label_logit, self.top, self._scratch)
        self.top1_id: torch.Tensor = torch.where(self.rank == 0, labels, likeliest)
        self.shifted = logits.sub_(self.maximum).clamp_(min=SMALLEST)
        exps = torch.exp(self.shifted, out=buffer)  # P · Z; dividing all of it costs a pass more
        self._total = exps.sum(1)  # Z
        self.top1_logprob: torch.Tensor = -self._total.log()
        self.logprob: torch.Tensor = (label_logit - self.maximum)[:, 0] + self.top1_logprob  # ln p
        self._mean_shifted: torch.Tensor = _dot(exps, self.shifted) / self._total
        self.entropy: torch.Tensor = (-self.top1_logprob - self._mean_shifted).clamp(min=0)
        self._others = exps.scatter_(1, at, 0.0)  # (n, V) P · Z of all tokens but the label
        norm = torch.linalg.vector_norm(self._others, dim=1) / self._total
        self.others_squared: torch.Tensor = norm**2

    def ties(self, tolerance: float) -> torch.Tensor:
        """How many other tokens are as likely as the label, or less so by a `tolerance` in nats,
        relative beyond 1 nat."""
        label = (self.logprob - self.top1_logprob)[:, None]  # shifted, as the others are
        bound = label - tolerance * label.abs().clamp(min=1)
        top = self.top - self.maximum
        return _count(torch.ge, self.shifted, bound, top, self._scratch) - self.rank - 1

    @property
    def head(self) -> Head:
        assert self._head is not None, "this needs the head"
        return self._head

    @cached_property
    def hidden_norm(self) -> torch.Tensor:
        """‖h‖."""
        assert self.hidden is not None, "this needs the hidden states"
        return torch.linalg.vector_norm(self.hidden.float(), dim=1)

    @cached_property
    def varentropy(self) -> torch.Tensor:
        """Σ P ln² P − H², as Σ P (s − Σ P s)² of the shifted logits s: where all tokens are
        nearly alike, the plain difference of squares would lose four digits."""
        squares = torch.sub(self.shifted, self._mean_shifted[:, None], out=self._scratch).square_()
        own = (self.logprob + self.entropy) ** 2  # the label's, which `_others` lacks
        return _dot(self._others, squares) / self._total + self.logprob.exp() * own

    def entropy_top(self, k: int) -> torch.Tensor:
        """Entropy of the renormalised k largest probabilities."""
        many = min(k, self.shifted.shape[1])
        largest = self.top[:, :k] if k <= self.top.shape[1] else self.shifted.topk(many).values
        logprob = largest.log_softmax(1).clamp(min=SMALLEST)
        return -(logprob.exp() * logprob).sum(1).clamp(max=0)

    def head_gradient_norm(self) -> torch.Tensor:
        """Of d nll / d (h Wᵀ + b); without a soft-cap the plain ‖P − onehot‖ times the scale."""
        if self.head.softcap is not None:
            return torch.linalg.vector_norm(self.through_head(self.logit_gradient()), dim=1)
        squared = self.logprob.expm1() ** 2 + self.others_squared
        return squared.sqrt() * abs(self.head.scale)

    def hidden_gradient_norm(self) -> torch.Tensor:
        """Of d nll / d h; one more product with the head."""
        delta = self.through_head(self.logit_gradient())  # (n, V) d nll / d (h Wᵀ + b)
        return torch.linalg.vector_norm(self.head.backward(delta), dim=1)

    def logit_gradient(self) -> torch.Tensor:
        """(n, V) d nll / d logits = P − onehot, in the memory of other temporary results."""
        delta = torch.div(self._others, self._total[:, None], out=self._scratch)
        return delta.scatter_(1, self.labels[:, None], self.logprob.expm1()[:, None])

    def through_head(self, delta: torch.Tensor) -> torch.Tensor:
        """A gradient in the logits → in h Wᵀ + b, in place: · scale · (1 − tanh²)."""
        if self.head.softcap is not None:
            capped = (self.shifted + self.maximum) / self.head.softcap
            delta *= 1 - capped**2
        return delta.mul_(self.head.scale)

    def log_probs(self) -> torch.Tensor:
        """(n, V) ln P."""
        return self.shifted + self.top1_logprob[:, None]

    def log_reference(self) -> torch.Tensor:
        """(n, V) ln Q of the reference."""
        assert self.reference is not None, "this needs the reference's logits"
        return self.reference.log_softmax(1).clamp_(min=SMALLEST)

    def kl_reference(self) -> torch.Tensor:
        """Σ Q (ln Q − ln P), both logarithms from shifted logits."""
        theirs = self.log_reference()
        return torch.linalg.vecdot(theirs.exp(), theirs - self.log_probs()).clamp(min=0)


def _count(
    than: Callable[..., torch.Tensor],
    logits: torch.Tensor,
    bound: torch.Tensor,
    top: torch.Tensor,
    scratch: torch.Tensor,
) -> torch.Tensor:
    """(n,) how many of a row's logits are greater `than` its (n, 1) bound, by `gt` or `ge`.

    The largest alone tell, as long as one of them is not: with nine labels of ten among the largest
    6 µs a row of 49,152, where a pass takes 33.
    """
    count = than(top, bound).sum(1)
    rows = (count == top.shape[1]).nonzero()[:, 0]
    if len(rows):
        chosen = torch.index_select(logits, 0, rows, out=scratch[: len(rows)])
        # In a float buffer: a sum of booleans takes four times as long.
        count[rows] = than(chosen, bound[rows], out=chosen).sum(1).long()
    return count


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n,) Σ a · b of each row of (n, V). On a CPU by products of two rows at a time, which write
    nothing of the size of V: 18 µs a row of 49,152, where `vecdot` takes 36."""
    if a.is_cuda:
        return torch.linalg.vecdot(a, b)
    even = len(a) // 2 * 2
    left, right = (x[:even].view(even // 2, 2, x.shape[1]) for x in (a, b))
    pairs = torch.bmm(left, right.transpose(1, 2)).diagonal(dim1=1, dim2=2).flatten()
    return torch.cat([pairs, torch.linalg.vecdot(a[even:], b[even:])])


def _largest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, k) largest values, falling, and (n,) where the first of them is; k at most V.

    The k largest lie in the k columns with the largest maxima when V is cut into columns.
    """
    n, vocab = logits.shape
    k = min(k, vocab)
    width = vocab // BLOCK
    if width < 2 * k:
        return logits.topk(k).values, logits.argmax(1)
    body = logits[:, : width * BLOCK].view(n, BLOCK, width)
    best = body.amax(1).topk(k).indices  # (n, k) columns
    candidates = body.gather(2, best[:, None, :].expand(n, BLOCK, k)).reshape(n, -1)
    largest = torch.cat([candidates, logits[:, width * BLOCK :]], dim=1).topk(k)
    first = largest.indices[:, 0]
    inside = first // k * width + best.gather(1, (first % k)[:, None])[:, 0]
    after = first - k * BLOCK + width * BLOCK
    return largest.values, torch.where(first < k * BLOCK, inside, after)
