"""Which simulated runs an iteration of meta-training is made of, and where they start.

Starts are counted from a usual rate, or from a task's tuned one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.rollout import columns_of, rollout
from trimtab.agents.training.settings import FamilyShare, LearnSettings
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.spec import WIDEST_START, ControlSpec
from trimtab.envs.simulators.batch import Programs, programs
from trimtab.envs.simulators.families.registry import make_family, narrowed
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.tasks import QUADRATIC, compiled_family

_NEAR = 0.3  # decades
_SMOOTHING = (0.25, 0.5, 0.25)  # of losses along the grid, each from a single run


def sample_decades(
    settings: LearnSettings, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (size,) decades by which starts are off, and 1 where statistics are withheld."""
    decades = rng.uniform(-settings.start_decades, settings.start_decades, size)
    decades = decades * np.where(rng.random(size) < settings.far_share, 1.7, 1.0)
    missing = (rng.random(size) < settings.withheld).astype(np.float32)
    if settings.near_share:
        near = rng.random(size) < settings.near_share
        decades = np.where(near, rng.uniform(-_NEAR, _NEAR, size), decades)
    if settings.tuned_share:
        decades = np.where(rng.random(size) < settings.tuned_share, 0.0, decades)
    return decades, missing


def sample_ranges(
    settings: LearnSettings, decades: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return where starts (B,) lie within ranges, decades off the tuned rate, and offsets (B, 2).

    A range's ends are counted from the start, as bounds are. A start outside its range is drawn
    again within it.
    """
    size = len(decades)
    least, most = np.log(settings.range_decades)
    width = np.exp(rng.uniform(least, most, size))
    low = -rng.random(size) * width
    inside = (decades >= low) & (decades <= low + width)
    has_range = rng.random(size) < settings.range_share
    moved = np.where(inside, decades, low + rng.random(size) * width)
    decades = np.where(has_range, moved, decades)
    ends = np.stack([low - decades, low + width - decades], axis=-1)
    usual = np.array([-WIDEST_START, WIDEST_START])
    return decades, np.where(has_range[:, None], ends, usual).astype(np.float32)


def start_values(
    items: Sequence[Hyperparameter],
    default_lr: np.ndarray,
    decades: np.ndarray,
    rng: Any,
    default_share: float = 0.0,
) -> np.ndarray:
    """Return (B, H) starts: learning rates off by ``decades``, others up to 10 times either way.

    Kinds that are not on a log scale, or whose default is 0, start uniformly within their bounds;
    a ``default_share`` of all but the learning rates starts at the default.
    """
    columns = []
    for item in items:
        if item.kind == "lr":
            columns.append(default_lr * 10.0**decades)
            continue
        if item.scale == "log" and item.default > 0:
            drawn = item.default * 10.0 ** rng.uniform(-1, 1, len(decades))
            drawn = np.clip(drawn, item.low, item.high)
        else:
            drawn = rng.uniform(item.low, item.high, len(decades))
        usual = rng.random(len(decades)) < default_share
        columns.append(np.where(usual, item.default, drawn))
    return np.stack(columns, axis=-1).astype(np.float32)


def log_losses(losses: np.ndarray) -> np.ndarray:
    """Return the logarithms of each task's losses (T, G), all of them finite.

    One that is not finite and above 0 counts as the highest of its task's others, tripled.
    """
    finite = np.isfinite(losses) & (losses > 0)
    worst = np.where(finite, losses, 1e-9).max(axis=1, keepdims=True)
    return np.asarray(np.log(np.where(finite, losses, 3.0 * worst)))


def lowest_place(decades: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return (T,) where along a grid each task's smoothed log losses (T, G) are lowest.

    The grid is even; between its points the parabola through the lowest and its two neighbours
    decides.
    """
    logs = log_losses(losses)
    padded = np.pad(logs, ((0, 0), (1, 1)), mode="edge")
    smooth = sum(
        weight * padded[:, at : at + logs.shape[1]] for at, weight in enumerate(_SMOOTHING)
    )
    smooth = np.asarray(smooth)
    inner = np.clip(smooth.argmin(axis=1), 1, logs.shape[1] - 2)
    each = np.arange(len(logs))
    below, here, above = (smooth[each, inner + shift] for shift in (-1, 0, 1))
    bend = below - 2.0 * here + above
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, 0.5 * (below - above) / bend, np.sign(below - above))
    step = decades[1] - decades[0]
    return np.asarray(decades[inner] + np.clip(shift, -1.0, 1.0) * step)


class Tuned(NamedTuple):
    """What reference runs told of the tasks of B runs, an even grid of G learning rates a task.

    Attributes:
        rate: (B,) the tuned rate.
        place: (B,) decades of it off the fair rate.
        grid: (G,) decades of the grid's points off the fair rate.
        losses: (B, G) log of the best validation loss, and of the selection loss there: their mean.
    """

    rate: np.ndarray
    place: np.ndarray
    grid: np.ndarray
    losses: np.ndarray


@dataclass
class TunedRates:
    """Tuned rates of the tasks at hand, kept while a training goes on with the same tasks."""

    _known: dict[tuple[int, ...], Tuned] = field(default_factory=dict)

    def of(
        self,
        settings: LearnSettings,
        compiled: Programs,
        spec: ControlSpec,
        offered: Sequence[Hyperparameter],
        task_keys: jax.Array,
        key: jax.Array,
        total_steps: int,
    ) -> Tuned | None:
        """Return what reference runs tell, or None where starts are counted from usual rates.

        There are as many reference runs a task as it has siblings, on a grid of up to
        ``settings.grid_decades`` either way of the fair rate.

        Args:
            settings: Of the training.
            compiled: Programs of the tasks' family.
            spec: With the number of decisions, which is the rhythm of validation.
            offered: Hyperparameters of the family.
            task_keys: (B,) keys, those of siblings side by side.
            key: Of the reference runs, whose seeds nothing else uses.
            total_steps: Of each run.
        """
        if not settings.tuned_share and settings.imitation is None:
            return None
        name = tuple(int(part) for part in np.asarray(jax.random.key_data(key)).ravel())
        if name not in self._known:
            grid = np.linspace(-1, 1, settings.siblings) * settings.grid_decades
            fair: list[np.ndarray] = []

            def start(rates: np.ndarray) -> np.ndarray:
                fair.append(np.asarray(rates))
                off = np.tile(grid, settings.tasks)
                return start_values(offered, rates, off, np.random.default_rng(0), 1.0)

            episodes = rollout(
                compiled,
                replace(spec, reward="best-so-far"),
                {},
                task_keys,
                jax.random.split(key, len(task_keys)),
                start,
                total_steps,
                mode="zero",
                guarded=False,
                centre=settings.start_centre,
                columns=columns_of(spec, offered),
            )
            # The geometric mean of two splits is the less noisy judge.
            losses = np.sqrt(np.maximum(episodes.best_val * episodes.selection_loss, 0.0))
            losses = losses.reshape(settings.tasks, settings.siblings)
            place = np.repeat(lowest_place(grid, losses), settings.siblings)
            along = np.repeat(log_losses(losses), settings.siblings, axis=0)
            self._known = {name: Tuned(fair[0] * 10.0**place, place, grid, along)}
        return self._known[name]


def family_of(share: FamilyShare, spec_names: Sequence[str]) -> Any:
    """Return the family of a share, offering the hyperparameters that are steered; none: all."""
    options = {"hyperparameters": tuple(spec_names), **share.options}
    options["optimisers"] = tuple(options.get("optimisers", ()))
    options["hyperparameters"] = tuple(options["hyperparameters"]) or None
    if share.name == QUADRATIC:
        return narrowed(compiled_family(share.name), spec_names)
    return make_family(share.name, FamilyOptions(**options))


def control_spec(settings: LearnSettings, items: Sequence[Hyperparameter], k: int) -> ControlSpec:
    """Return the spec for runs of ``k`` decisions over a family's hyperparameters."""
    fields = {name: item for name, item in settings.spec.items() if name != "hyperparameters"}
    return ControlSpec(
        hyperparameters=tuple(items), decisions=k, **{"reward": "best-so-far", **fields}
    )


@dataclass(frozen=True)
class FamilyVariant:
    """One network shape of a family; family and programs are made when it is first drawn."""

    share: float
    begin: float
    item: FamilyShare
    names: tuple[str, ...]
    variant: int

    def load(self) -> tuple[Any, Any]:
        """Return the family and its compiled programs."""
        family = family_of(self.item, self.names)
        return family, programs(family, self.variant)


def all_variants(settings: LearnSettings) -> list[FamilyVariant]:
    """Return the network shapes that a training draws from.

    Raises:
        SpecError: None is drawn from the start.
    """
    names = tuple(settings.spec["hyperparameters"])
    found: list[FamilyVariant] = []
    for item in settings.families:
        variants = item.variants or tuple(range(family_of(item, names).n_variants))
        share = item.share / len(variants)
        found += [FamilyVariant(share, item.begin, item, names, variant) for variant in variants]
    if all(one.begin > 0 for one in found):
        raise SpecError("families: none begins at 0; let one be drawn from the start")
    return found


def count_properties(variant: FamilyVariant) -> int:
    """Return how many hidden properties the critic is told of a task."""
    family = family_of(variant.item, variant.names)
    draw = family.draw(variant.variant, jax.random.key(0))
    return int(family.properties(draw).shape[0])


class SampledRuns(NamedTuple):
    """What one iteration runs.

    Attributes:
        programs: Of its family's variant.
        offered: Hyperparameters of the family.
        spec: With the number of decisions.
        total_steps: Of each run.
        task_keys: (B,) of tasks.
        run_keys: (B,) of initialisation and data order.
        decades: (B,) by which starts are off.
        missing: (B,) 1 where gradient statistics are withheld.
        tuned: Of the tasks, if it is known.
        rng: What else is drawn comes from here.
        ranges: (B, 2) offsets of the ends of the ranges; None under version 1 of the spec.
    """

    programs: Any
    offered: tuple[Hyperparameter, ...]
    spec: ControlSpec
    total_steps: int
    task_keys: jax.Array
    run_keys: jax.Array
    decades: np.ndarray
    missing: np.ndarray
    tuned: Tuned | None
    rng: np.random.Generator
    ranges: np.ndarray | None = None


def sample_runs(
    settings: LearnSettings, variants: list[FamilyVariant], iteration: int, tuned: TunedRates
) -> SampledRuns:
    """Return what an iteration runs; the same for the same settings and iteration."""
    first = iteration - iteration % settings.reuse  # of those that share their tasks
    rng = np.random.default_rng([settings.seed, first])
    progress = first / settings.iterations
    shares = np.array([item.share * (item.begin <= progress) for item in variants])
    drawn = variants[rng.choice(len(variants), p=shares / shares.sum())]
    family, compiled = drawn.load()
    k = int(rng.choice(settings.decisions))
    low, high = np.log(settings.steps_per_decision)
    steps = round(k * float(np.exp(rng.uniform(low, high))))
    items = family.hyperparameters
    if drawn.item.subsets:
        names = drawn.item.subsets[rng.integers(len(drawn.item.subsets))]
        items = tuple(item for item in items if item.name in names)
    spec = control_spec(settings, items, k)
    root = jax.random.key(settings.seed)
    key, own = jax.random.fold_in(root, first), jax.random.fold_in(root, iteration)
    siblings = settings.siblings
    task_keys = jnp.repeat(jax.random.split(key, settings.tasks), siblings, axis=0)
    run_keys = jax.random.split(jax.random.fold_in(own, 1), settings.tasks)
    run_keys = jnp.repeat(run_keys, siblings, axis=0)
    if iteration > first:
        rng = np.random.default_rng([settings.seed, iteration])
    decades, missing = sample_decades(settings, settings.tasks * siblings, rng)
    offered = family.hyperparameters
    grid_key = jax.random.fold_in(key, 2)
    known = tuned.of(settings, compiled, spec, offered, task_keys, grid_key, steps)
    ranges = None
    if spec.version > 1:
        of_ranges = np.random.default_rng([settings.seed, iteration, 5])
        decades, ranges = sample_ranges(settings, decades, of_ranges)
    keys = task_keys, run_keys
    return SampledRuns(compiled, offered, spec, steps, *keys, decades, missing, known, rng, ranges)
