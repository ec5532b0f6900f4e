"""``simulated/quadratic``: the noisy quadratic of Zhang et al. (2019), in closed form.

Weights ``theta`` are measured from the training optimum. Along every eigenvector of the Hessian,
with curvature ``h``, preconditioner ``h ** -p`` (p = 0 is SGD, p = 1 an ideal second-order method,
Adam lies between), gradient noise of variance ``c / batch``, momentum ``mu``, learning rate
``alpha`` and decoupled decay ``lam`` towards the origin ``o`` of the weights, one step is::

    v     <- mu v + h ** (1 - p) theta + h ** -p noise
    theta <- theta - alpha v - alpha lam (theta - o)

Both are linear, so the mean of (theta, v) and its 2 x 2 covariance follow recursions of their own
(section 3 and appendix of arXiv 1907.04164; here with momentum and decay) and nothing is sampled
along the way. The expected loss of a split with optimum ``delta`` is
``floor + 1/2 sum h ((mean - delta) ** 2 + variance)``. Every split has its own optimum: training at
zero, the population's at a distance that grows where curvature is small, and each measured split
near that one, the nearer the more samples it has. So a run can overfit, and a validation loss
misleads a little. What one realised run adds to the expectation, in a mini-batch's loss and in the
weights at hand, is drawn from a counter: (seed, step) gives the same number in any order.

The functions are written against an array namespace: plain NumPy, or traced by JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.family import EVALUATION_CHUNK
from trimtab.envs.simulators.random_numbers import normal, seed_of, uniform

SPLITS = ("train", "validation", "selection", "test")
"""The rows of `Draw.optima`."""

# Property -> stream of random numbers, by position: append, never reorder.
_STREAMS = (
    *("dims", "condition", "spectrum", "preconditioner", "noise", "shift", "floor", "loss_scale"),
    *("lr_factor", "profile", "validation", "spread", "step_noise", "weight", "ratio", "signs"),
    *("size", "optimum_sample", "split_sample"),
)


_PAD = 256
_HYPERPARAMETERS = (
    hyperparameter("lr", 1e-2),
    hyperparameter("momentum", 0.9, high=0.99),
    hyperparameter("weight_decay", 1e-2),
    hyperparameter("batch_size", 32.0),
)
_LEAST_NOISE = 1e-4  # of a loss, relative: it outweighs rounding, which differs between backends
_BIGGEST = 1e30  # losses beyond count as infinite, before a square overflows in one place only
_STEP_STREAM, _WEIGHT_STREAM, _START_STREAM = 101, 102, 103


class Draw(NamedTuple):
    """One task; P is the padded number of dimensions, beyond the real ones all rows are zero.

    Attributes:
        curvature: (P,) eigenvalues h of the Hessian, the largest 1.
        rate: (P,) ``h ** (1 - p)``, curvature after preconditioning.
        noise: (P,) variance c of one example's gradient.
        noise_pre: (P,) ``h ** (-2 p) c``.
        begin: (P,) where runs begin, before the variation by seed.
        origin: (P,) where the weights are zero.
        optima: (4, P) of the training, validation, selection and test loss.
        floor: () loss that cannot be removed; the removable part begins near 1.
        loss_scale: () all reported losses are multiplied by it.
        lr_factor: () hidden; the given learning rate times this is alpha.
        step_noise: () variation of one example's loss over the mean loss.
        ratio: () the reported update-to-weight ratio is multiplied by it.
        n_train: () int32 samples of each split ...
        n_validation: () int32.
        n_selection: () int32.
        n_test: () int32.
        hidden: (7,) what the family's ``properties`` returns.
    """

    curvature: Any
    rate: Any
    noise: Any
    noise_pre: Any
    begin: Any
    origin: Any
    optima: Any
    floor: Any
    loss_scale: Any
    lr_factor: Any
    step_noise: Any
    ratio: Any
    n_train: Any
    n_validation: Any
    n_selection: Any
    n_test: Any
    hidden: Any


class _Source:
    """Draws from a task's seed by the name of the property."""

    def __init__(self, seed: Any, pad: int, xp: Any) -> None:
        self.xp, self._seed = xp, seed
        self.places = xp.arange(pad, dtype=np.uint32)
        self._table = distributions()["quadratic"]

    def within(self, name: str, bounds: Any = None) -> Any:
        """Return one number between bounds, by default those of the table."""
        low, high = self._table[name] if bounds is None else bounds
        position = self.xp.zeros(1, np.uint32)
        share = uniform(self._seed, _STREAMS.index(name), position)[0]
        return np.float32(low) + share * np.float32(high - low)

    def decimal(self, name: str) -> Any:
        """Return ten to the power of a number within the table's bounds."""
        return np.float32(10.0) ** self.within(name, self._table[f"{name}_log10"])

    def normals(self, name: str, block: int = 0) -> Any:
        """Return (P,) standard normal numbers; blocks of one property are independent."""
        places = self.places + np.uint32(len(self.places) * block)
        return normal(self._seed, _STREAMS.index(name), places, self.xp)

    def fixed(self, name: str, kind: Any) -> Any:
        """Return a number of the table that is the same in every task."""
        return self.xp.asarray(self._table[name], kind)


def draw_quadratic(seed: Any, pad: int, xp: Any) -> Draw:
    """Return one task from the documented distributions.

    Args:
        seed: (1,) uint32.
        pad: Padded number of dimensions, at least the largest real one.
        xp: ``numpy`` or ``jax.numpy``.
    """
    f, source = np.float32, _Source(seed, pad, xp)
    dims = xp.minimum(xp.floor(source.decimal("dims")), f(pad))
    place = source.places.astype(f)
    real = (place < dims).astype(f)
    condition = source.within("condition", distributions()["quadratic"]["condition_log10"])
    rank = xp.minimum(place / (dims - f(1.0)), f(1.0)) ** source.decimal("spectrum")
    curvature = f(10.0) ** (-condition * rank)  # of real dimensions; the rest is masked below
    power, noise_scale = source.within("preconditioner"), source.decimal("noise")
    noise = noise_scale * noise_scale * curvature * real

    profile = curvature ** source.within("profile") * xp.exp(source.normals("size")) * real
    sign = xp.where(source.normals("signs") > 0, f(1.0), f(-1.0))
    share = profile / xp.sum(profile)  # of the removable loss
    begin = sign * xp.sqrt(f(2.0) * share / curvature) * real
    width = source.decimal("weight") * xp.sqrt(xp.sum(begin * begin) / dims)
    counts = _counts(source)
    shift, lr_factor = source.within("shift"), source.decimal("lr_factor")
    return Draw(
        curvature=curvature * real,
        rate=curvature ** (f(1.0) - power) * real,
        noise=noise,
        noise_pre=noise * curvature ** (f(-2.0) * power),
        begin=begin,
        origin=begin - width * source.normals("spread") * real,
        # the same share of the loss in every dimension
        optima=_optima(source, xp.sqrt(f(2.0) / (curvature * dims)) * real, shift, counts),
        floor=source.decimal("floor"),
        loss_scale=source.decimal("loss_scale"),
        lr_factor=source.fixed("lr_unit", f) * lr_factor,
        step_noise=source.within("step_noise"),
        ratio=source.decimal("ratio"),
        n_train=counts[0],
        n_validation=counts[1],
        n_selection=counts[2],
        n_test=counts[3],
        hidden=xp.stack(
            [
                xp.log10(dims) / f(2.0),
                condition / f(4.0),
                power,
                xp.log10(noise_scale),
                shift,
                xp.log10(counts[1].astype(f)) / f(2.0),
                xp.log10(lr_factor),
            ]
        ),
    )


def _counts(source: _Source) -> list[Any]:
    """Return the () int32 numbers of samples of each split."""
    validation = source.xp.floor(source.decimal("validation")).astype(np.int32)
    train, selection, test = (
        source.fixed(f"n_{split}", np.int32) for split in ("train", "selection", "test")
    )
    return [train, validation, selection, test]


def _optima(source: _Source, spread: Any, shift: Any, counts: list[Any]) -> Any:
    """Return the (4, P) optima: training, then samples of the population's by their size."""
    xp = source.xp
    population = shift * spread * source.normals("optimum_sample")
    rows = [spread * np.float32(0.0)]
    for split in range(1, len(SPLITS)):
        noise = source.normals("split_sample", split) / xp.sqrt(counts[split].astype(np.float32))
        rows.append(population + spread * noise)
    return xp.stack(rows)


class Moments(NamedTuple):
    """Where the weights of all thinkable runs with these settings are; (P,) float32 each.

    Attributes:
        mean: Of theta.
        velocity: Mean of v.
        var: Variance of theta.
        cov: Covariance of theta and v.
        velocity_var: Variance of v.
    """

    mean: Any
    velocity: Any
    var: Any
    cov: Any
    velocity_var: Any


class State(NamedTuple):
    """A run in progress.

    Attributes:
        moments: Of the weights and the momentum.
        clock: (1,) int32, steps of the whole run when these weights were made.
        seed: (1,) uint32, of initialisation and data order.
    """

    moments: Any
    clock: Any
    seed: Any


class _Window(NamedTuple):
    """What a window gathers; ``before``: at its last step, ``earlier``: one step before that."""

    moments: Any
    before: Any
    earlier: Any
    alpha_earlier: Any
    origin: Any
    mean: Any
    squares: Any
    halves: Any
    steps: Any
    finite: Any


@dataclass(frozen=True)
class Quadratics:
    """The family of noisy quadratics; see `trimtab.envs.simulators.family.Family`.

    Distributions stand in ``distributions.toml``, table ``quadratic``; every property of a task is
    drawn from a stream of its own. There is one variant: all tasks are padded to 256 dimensions.

    Attributes:
        array: ``"numpy"``, or ``"jax"`` to be traced; both give the same numbers up to rounding.
    """

    array: str = "numpy"
    name: str = "simulated/quadratic"

    @cached_property
    def xp(self) -> Any:
        """The array namespace."""
        if self.array == "numpy":
            return np
        import jax.numpy as jnp

        return jnp

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Learning rate, momentum, decoupled weight decay and batch size; all act."""
        return _HYPERPARAMETERS

    @property
    def n_variants(self) -> int:
        """One: every task is padded to the same size."""
        return 1

    @property
    def evaluation_chunk(self) -> int:
        """The usual: a closed form needs little memory."""
        return EVALUATION_CHUNK

    def bank(self, variant: int) -> tuple[()]:
        """Return nothing: a quadratic needs no pretrained networks."""
        del variant
        return ()

    def draw(self, variant: int, key: Any) -> Draw:
        """Return a task's properties from a key of two uint32 words."""
        del variant
        return draw_quadratic(seed_of(key, self.xp), _PAD, self.xp)

    def start(self, variant: int, bank: Any, draw: Draw, key: Any) -> State:
        """Return the state before the first step: 10 % off the task's begin, by the key."""
        del variant, bank
        xp = self.xp
        seed = seed_of(key, xp)
        each = xp.arange(_PAD, dtype=np.uint32)
        varied = np.float32(1.0) + np.float32(0.1) * normal(seed, _START_STREAM, each, xp)
        mean = draw.begin * varied
        still = mean * np.float32(0.0)
        return State(Moments(mean, still, still, still, still), xp.zeros(1, np.int32), seed)

    def advance(
        self,
        variant: int,
        bank: Any,
        draw: Draw,
        state: State,
        values: Any,
        reference: Any,
        first_step: Any,
        n_steps: Any,
        max_steps: Any,
    ) -> tuple[State, Metrics]:
        """Train a window; see `Family.advance`. A step is five recursions a dimension."""
        del variant, bank
        xp = self.xp
        setting = self._setting(draw, values)
        alpha_at = values[0] * draw.lr_factor * reference
        places = xp.arange(len(reference), dtype=np.uint32)
        luck = normal(state.seed, _STEP_STREAM, places, xp) * draw.step_noise
        luck_at = np.float32(1.0) + luck / xp.sqrt(values[3])
        half = n_steps // 2
        zero = draw.floor * np.float32(0.0)
        count = xp.asarray(n_steps, np.int32)

        def turn(i: Any, window: _Window) -> _Window:
            step = first_step + xp.minimum(i, count - 1)
            alpha = alpha_at[step]
            active = (i < count) & window.finite
            expected = draw.floor + self._removable(draw, window.moments, 0)
            loss = xp.maximum(expected * luck_at[step], zero)
            fine = loss < np.float32(_BIGGEST)  # false for nan
            sound = active & fine
            moved = self._moved(draw, window.moments, alpha, setting)
            origin = self._choose(i == 0, loss, window.origin)
            excess = self._choose(active, loss - origin, zero)
            steps = window.steps + active.astype(np.int32)
            # running mean and sum of squares (Welford, 1962), which keep their digits
            off = self._choose(active, excess - window.mean, zero)
            mean = window.mean + off / xp.maximum(steps, 1).astype(np.float32)
            sign = (i >= count - half).astype(np.float32) - (i < half).astype(np.float32)
            return _Window(
                moments=self._choose_moments(sound, moved, window.moments),
                before=self._choose_moments(sound, window.moments, window.before),
                earlier=self._choose_moments(sound, window.before, window.earlier),
                alpha_earlier=self._choose(active & (i < count - 1), alpha, window.alpha_earlier),
                origin=origin,
                mean=mean,
                squares=window.squares + self._choose(active, off * (excess - mean), zero),
                halves=window.halves + excess * sign,
                steps=steps,
                finite=window.finite & (fine | (i >= count)),
            )

        moments = state.moments
        ends = (zero.astype(np.int32), xp.isfinite(draw.floor))  # steps, finite
        begin = _Window(*(moments,) * 3, *(zero,) * 5, *ends)
        window = self._loop(max_steps, turn, begin)
        clock = (first_step + window.steps) * xp.ones(1, np.int32)
        metrics = self._metrics(draw, window, alpha_at, (first_step, count, half), values)
        return State(window.moments, clock, state.seed), metrics

    def _choose(self, flag: Any, first: Any, second: Any) -> Any:
        """Return ``first`` where the () flag is set; in NumPy a plain branch, for its speed."""
        if self.xp is np:
            return first if flag else second
        return self.xp.where(flag, first, second)

    def _choose_moments(self, flag: Any, first: Moments, second: Moments) -> Moments:
        if self.xp is np:
            return first if flag else second
        return Moments(*(self.xp.where(flag, a, b) for a, b in zip(first, second, strict=True)))

    def _setting(self, draw: Draw, values: Any) -> tuple[Any, Any, Any, Any]:
        """Return momentum, decay, decay times origin, and noise of v: the same all window."""
        return values[1], values[2], values[2] * draw.origin, draw.noise_pre / values[3]

    def _loop(self, count: Any, turn: Callable[[Any, Any], Any], carry: Any) -> Any:
        if self.xp is np:
            for i in range(int(count)):
                carry = turn(np.int32(i), carry)
            return carry
        from jax import lax

        return lax.fori_loop(0, count, turn, carry)

    def _removable(self, draw: Draw, moments: Moments, split: int) -> Any:
        """Return the expected loss of a split above the floor, () in units of the task."""
        mean = moments.mean
        distance = mean - draw.optima[split] if split else mean  # training has its optimum at 0
        return np.float32(0.5) * self.xp.dot(draw.curvature, distance * distance + moments.var)

    def _moved(
        self, draw: Draw, moments: Moments, alpha: Any, setting: tuple[Any, Any, Any, Any]
    ) -> Moments:
        """Return the moments after one step."""
        momentum, decay, pull, shaken = setting
        mean, velocity, var, cov, velocity_var = moments
        rate, keep = draw.rate, np.float32(1.0) - alpha * decay
        velocity = momentum * velocity + rate * mean
        slope = rate * var
        cross = momentum * cov + slope  # covariance of theta before and v after
        velocity_var = momentum * (momentum * velocity_var + rate * cov) + rate * cross + shaken
        step = alpha * velocity_var
        slide = alpha * cross
        cov = keep * cross - step
        return Moments(
            mean=keep * mean + alpha * (pull - velocity),
            velocity=velocity,
            var=keep * (keep * var - slide) - alpha * cov,
            cov=cov,
            velocity_var=velocity_var,
        )

    def _metrics(
        self, draw: Draw, window: _Window, alpha_at: Any, when: tuple[Any, Any, Any], values: Any
    ) -> Metrics:
        """Return the window's metrics; statistics of gradients are those of expected squares."""
        xp = self.xp
        momentum, batch = values[1], values[3]
        first_step, count, half = when
        done = xp.maximum(window.steps, 1).astype(np.float32)
        deviation = xp.sqrt(window.squares / done)
        now, was, last = window.before, window.earlier, window.moments
        h2 = draw.curvature * draw.curvature
        shaken = xp.sum(draw.noise) / batch
        norm2 = xp.dot(h2, now.mean * now.mean + now.var) + shaken
        norm2_was = xp.dot(h2, was.mean * was.mean + was.var) + shaken
        a = window.alpha_earlier
        keep = np.float32(1.0) - a * values[2]
        shared = keep * was.var - a * (momentum * was.cov + draw.rate * was.var)
        echo = a * xp.dot(draw.rate, draw.noise) / batch
        product = xp.dot(h2, was.mean * now.mean + shared) - echo
        alpha = alpha_at[first_step + count - 1]
        # not last.mean - now.mean, which would lose its digits at small rates
        moved = last.velocity + values[2] * (now.mean - draw.origin)
        step2 = alpha * alpha * xp.sum(moved * moved + last.velocity_var)
        weight2 = xp.sum((now.mean - draw.origin) ** 2 + now.var)
        whole, missing = window.finite, np.float32(np.nan)
        scale = draw.loss_scale
        change = window.halves / xp.maximum(half, 1).astype(np.float32)
        cosine = xp.clip(product / xp.sqrt(norm2 * norm2_was), -1.0, 1.0)
        return Metrics(
            train_loss=(window.origin + window.mean) * scale,
            train_loss_first=window.origin * scale,
            train_loss_change=xp.where(whole & (half > 0), change * scale, missing),
            train_loss_std=xp.where(whole, deviation * scale, missing),
            val_loss=missing,
            reward_loss=missing,
            reference_loss=missing,
            grad_norm=xp.where(whole, xp.sqrt(norm2) * scale, missing),
            grad_cosine=xp.where(whole & (count > 1), cosine, missing),
            update_ratio=xp.where(whole, xp.sqrt(step2 / weight2) * draw.ratio, missing),
            steps=window.steps.astype(np.float32),
            charge=window.steps.astype(np.float32) * batch,
            finite=whole.astype(np.float32),
        )

    def evaluate(
        self, variant: int, bank: Any, draw: Draw, state: State, split: str
    ) -> tuple[Any, Any]:
        """Return the () loss of the weights at hand, and nan: a quadratic has no accuracy.

        Around the expectation the loss of one realised run deviates by the standard deviation of
        a quadratic form of normal weights, log-normally. It belongs to the weights, and so is
        the same whenever and on whatever split they are measured.

        Raises:
            UnknownNameError: There is no such split.
        """
        del variant, bank
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        xp, h, row = self.xp, draw.curvature, SPLITS.index(split)
        removable = self._removable(draw, state.moments, row)
        distance, var = state.moments.mean - draw.optima[row], state.moments.var
        spread2 = xp.dot(h * h * var, distance * distance + np.float32(0.5) * var)
        luck = normal(state.seed, _WEIGHT_STREAM, state.clock.astype(np.uint32), xp)[0]
        # log-normal with this mean and variance: positive, as a sum of squares is
        log_var = xp.log1p(spread2 / xp.maximum(removable * removable, np.float32(1e-30)))
        log_var = log_var + np.float32(_LEAST_NOISE**2)
        chance = xp.exp(luck * xp.sqrt(log_var) - np.float32(0.5) * log_var)
        loss = (draw.floor + removable * chance) * draw.loss_scale
        fine = removable < np.float32(_BIGGEST)
        return xp.where(fine, loss, np.float32(np.inf)), xp.asarray(np.nan, np.float32)

    def properties(self, draw: Draw) -> Any:
        """Return (7,) float32 hidden properties, roughly of unit scale.

        log10 dimensions / 2, log10 condition / 4, preconditioner, log10 noise, shift of the
        optimum, log10 validation samples / 2, log10 hidden learning-rate factor.
        """
        return draw.hidden

    def default_lr(self, draw: Draw) -> Any:
        """Return the () usual peak learning rate, 0.01; the hidden factor moves the truth."""
        return draw.floor * np.float32(0.0) + np.float32(1e-2)

    def forget(self, state: State) -> State:
        """Return the state with momentum cleared."""
        still = state.moments.velocity * np.float32(0.0)
        return state._replace(
            moments=state.moments._replace(velocity=still, cov=still, velocity_var=still)
        )
