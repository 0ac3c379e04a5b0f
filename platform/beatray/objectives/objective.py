"""What every method of pretraining is. One method, one file in this folder: a subclass of `Objective`.

A subclass names its `name`, its `title`, its `Settings` (a frozen dataclass: the schema of `objective.*`, and the only
place of defaults, bounds and help) and gives `views` and `forward`. It is found by looking (`registry.py`); nothing
else in the repository knows it by name. docs/adding-an-objective.md is a worked example.

Contract, which one test holds for every method there is (tests/unit/test_every_objective.py, and for several ranks
tests/distributed/test_every_objective_on_ranks.py):

- `views` draws all that is random in what is learned from `Draws`, which depend on seed, epoch and record alone; what
  it returns has one row per record, whatever the batch, the worker or the device. They are made ahead of their step, by
  a thread or a process of their own: whether they are to learn from or to validate on is in `draws.validates`,
  not the mode of the module. Dropout is the one random thing that may depend on the rank.
- `forward` runs under data parallel training on any number of ranks with any number of records on each, zero included.
  Its loss is backpropagated on this rank; `means` and `counts` are over the global batch (see reduce.py), so k ranks
  give loss and gradient of one rank on the global batch. In evaluation mode it changes no tensor.
- With `static_shapes` no part of `forward` on one rank waits for the device: no number is fetched from it, no shape
  follows from values, nothing is made on the host and copied.
- `after_step` is called once per global step, after the optimizer, and not for a refused step. What it changes is the
  same on all ranks and lies in parameters or buffers, so that a checkpoint holds it.
- `exported` is what others get of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from beatray.augment.beats import BeatBox
from beatray.augment.draws import Draws
from beatray.models.encoder import Encoder, LeadEncoder, TokenEncoder
from beatray.objectives.published import PublishedTable

if TYPE_CHECKING:
    from beatray.objectives.statistics import FeatureStatistics

Tensors = dict[str, Tensor]

MIN_EMBEDDING_STD = 0.3
"""Of unit embeddings, as a part of that of a sphere (reduce.embedding_std): below, they count as collapsed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: global step `step` of `steps`, epoch `epoch` of `epochs`, all counted from 0.

    A pure function of the step, so that a run that is continued sees what it would have seen.
    """

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def part(self) -> float:
        """The part of the run that is over once this step is done: above 0, 1 after the last."""
        return (self.step + 1) / max(self.steps, 1)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What `forward` gives. `means` has the key "loss"; its other keys are `term/what`, as journals and MLflow show.

    `loss` is for this rank's backward pass; `means` and `counts` are over the global batch, without gradient. Over the
    micro-batches of a step means are averaged by rows and counts are summed. `outputs`, in evaluation mode, have one
    row per record of this rank: what `validated` is given of the whole validation part.
    """

    loss: Tensor
    means: dict[str, Tensor]
    counts: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that the optimizer treats alike: learning-rate scale, whether they decay, the highest rate."""

    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    decays: bool = True
    max_lr: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One panel of "how it learned": the key in the journal, its title, and a level to read it against.

    `share` marks values that are parts of 1.
    """

    key: str
    title: str
    share: bool = False
    level: float | None = None
    level_name: str = ""


class Objective(nn.Module):
    """The base of all methods; see the module text."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    Settings: ClassVar[type[Any]]

    supervised: ClassVar[bool] = False
    """Whether it learns from labels: such a one is no method of pretraining."""

    mean_over: ClassVar[str | None] = None
    """The count of `forward` that its "loss" is a mean over; None: rows. Micro-batches of a step, and batches of a
    validation, are weighed by it."""

    remedy: ClassVar[str] = "lower the learning rate or the temperature, or sharpen the targets"
    """The remedy when embeddings collapse, as a warning gives it."""

    views_text: ClassVar[str] = "A view is what the method makes of the same stretch."
    """The text of a report below the pictures of views."""

    paper: ClassVar[str] = ""
    """Authors, title, venue and year of what it follows, with its number at arXiv, as a report's page shows them."""

    published: ClassVar[PublishedTable | None] = None
    """The table of its paper: the report of a sweep stands beside it."""

    reads: tuple[str, ...] = ("signal_uv", "n_samples", "record_key")
    """Arrays of the corpus that `views` needs; a method that needs more sets it when it is built."""

    frozen_modules: Sequence[nn.Module] = ()
    """Parts of the encoder that are not trained: they stay in evaluation mode, whatever the rest is in."""

    static_shapes: bool = False
    """Whether `forward` keeps shapes that do not depend on what tensors hold. The loop sets it where the host must not
    wait for the device, or where steps are recorded; results are those without, but for rounding."""

    def __init__(self, encoder: Encoder, settings: Any, statistics: FeatureStatistics | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = settings

    def train(self, mode: bool = True) -> Self:
        """Training mode of all that is trained."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self

    def views(self, batch: Tensors, draws: Draws) -> Tensors:
        """From a batch with the arrays `reads` to what `forward` takes: tensors with one row per record."""
        raise NotImplementedError(f"{type(self).__name__} gives no views")

    def forward(self, views: Tensors, at: Progress) -> StepResult:
        """The loss of this rank's share of the global batch, and what is to be known of the step."""
        raise NotImplementedError(f"{type(self).__name__} gives no forward")

    def chosen(self, rows: Tensor, there: Tensor) -> tuple[Tensor, Tensor | None]:
        """Those of some rows (..., D) that are there (...) bool: (n, D), and None.

        With static shapes all of them, and which of these are there (n,).
        """
        if self.static_shapes:
            return rows.flatten(0, there.ndim - 1), there.flatten()
        return rows[there], None

    def after_step(self, at: Progress) -> None:
        """Once per global step, after the optimizer, unless the step was refused: teachers, queues, prototypes."""

    def stop_gradient(self, target: Tensor) -> Tensor:
        """A target that is made with the very weights that are trained, and that the loss takes as given.

        Finite differences would follow it, the gradient does not: a test keeps what comes through here fixed.
        """
        return target.detach()

    def validated(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Scores of the whole validation part, from the outputs of all ranks; no order of the rows may matter."""
        return {}

    def selection(self, scores: Mapping[str, float]) -> float:
        """What the best checkpoint has least of: of `validation_loss` and, by `validation_NAME`, what `validated` gave.

        NaN: it is unknown.
        """
        return scores["validation_loss"]

    def parameter_groups(self) -> list[ParameterGroup]:
        """What the optimizer trains. Decay is for matrices; `no_decay` and `max_lr` of a parameter are kept to."""
        return grouped(self.parameters())

    def exported(self) -> Encoder:
        """The encoder that others get."""
        return self.encoder

    @classmethod
    def resolved(cls, settings: Any) -> Any:
        """The settings as a run begins with them: paths made absolute, digests filled in. May raise SettingsError."""
        return settings

    @classmethod
    def described(cls, settings: Any) -> str:
        """A phrase for the method and the settings that matter."""
        return cls.title

    @classmethod
    def variant(cls, changes: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """The method's own name for a row of a sweep with these dotted settings; `settings` are all of the objective.

        With it the settings that the name leaves out. None where the method has no name for them.
        """
        return None

    @classmethod
    def beat_box(cls, settings: Any) -> BeatBox | None:
        """The windows around R-peaks that are contrasted; None for a method that knows no beats."""
        return None

    @classmethod
    def curves(cls, settings: Any) -> Sequence[Curve]:
        """What a report draws of a run beside the loss and the learning rate."""
        return embedding_curves("record")

    @classmethod
    def warnings(cls, settings: Any, means: Mapping[str, float], at: Progress) -> dict[str, str]:
        """One sentence for each mean that shows that learning fails, by its key."""
        return collapse_warnings(means, at, cls.remedy)


def grouped(parameters: Iterable[nn.Parameter], lr_scale: float = 1.0) -> list[ParameterGroup]:
    """Parameters that are trained, by whether they decay and how fast they may learn.

    Biases, norms and other vectors never decay, nor what is marked `no_decay`; `max_lr` marks what must learn slowly.
    """
    found: dict[tuple[bool, float | None], list[nn.Parameter]] = {(True, None): [], (False, None): []}
    for parameter in parameters:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not getattr(parameter, "no_decay", False)
            found.setdefault((decays, getattr(parameter, "max_lr", None)), []).append(parameter)
    return [
        ParameterGroup(tuple(members), lr_scale, decays, max_lr)
        for (decays, max_lr), members in found.items()
        if members
    ]


def embedding_curves(term: str) -> list[Curve]:
    """The loss of a term and the spread of its embeddings."""
    return [
        Curve(f"{term}/loss", f"{term} loss"),
        Curve(f"{term}/embedding_std", f"{term}: embedding SD", True, MIN_EMBEDDING_STD, "collapsed below"),
    ]


def collapse_warnings(means: Mapping[str, float], at: Progress, remedy: str = Objective.remedy) -> dict[str, str]:
    """A sentence for each `term/embedding_std` that is near 0, once a tenth of the run is over."""
    found = {}
    for key, value in means.items():
        term, _, what = key.partition("/")
        few = means.get("records", 2.0) < 2.0 or means.get(f"{term}/rows", 2.0) < 2.0  # one recording spreads nowhere
        if what != "embedding_std" or at.part <= 0.1 or few:
            continue
        if value < MIN_EMBEDDING_STD:
            found[key] = (
                f"{term} embeddings have nearly collapsed (SD {value:.2f} < {MIN_EMBEDDING_STD} of a sphere's): "
                f"{remedy}"
            )
    return found


def needs_tokens(encoder: Encoder, title: str, *, causal: bool = False, drops: bool = False) -> TokenEncoder:
    """The encoder, if it makes tokens as a method needs them; ValueError, when the method is built, if not.

    `causal`: some direction in which a token has seen nothing that comes later. `drops`: tokens may be left out.
    """
    name = encoder.name
    if not isinstance(encoder, TokenEncoder):
        offers = _offers("encode", drops=drops)
        raise ValueError(f"{title} needs a network that makes tokens of the signal, which {name} does not; {offers}")
    if causal and not encoder.directions:
        raise ValueError(
            f"{title} needs a context that has not seen what is to be predicted, and {name} sees both sides as it is "
            "set; networks with a causal context have encoder.direction=forward or both"
        )
    if drops and not encoder.drops_tokens:
        raise ValueError(f"{title} leaves tokens out, which {name} cannot; {_offers('encode', drops=True)}")
    return encoder


def needs_leads(encoder: Encoder, title: str) -> LeadEncoder:
    """The encoder, if it reads each lead alone; ValueError, when the method is built, if not."""
    if not isinstance(encoder, LeadEncoder):
        raise ValueError(
            f"{title} needs a network that reads each lead alone (forward_leads), which {encoder.name} does not; "
            f"{_offers('forward_leads')}"
        )
    return encoder


def _offers(method: str, *, drops: bool = False) -> str:
    """The networks that have a method, and with `drops` may leave tokens out."""
    from beatray.models.registry import encoder_classes

    kinds = {name: kind for name, kind in encoder_classes().items() if hasattr(kind, method)}
    names = [name for name, kind in kinds.items() if not drops or getattr(kind, "drops_tokens", False)]
    return f"networks that can: {', '.join(sorted(names)) or 'none'}"
