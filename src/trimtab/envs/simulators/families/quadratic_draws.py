"""The properties of one noisy quadratic, each drawn from a stream of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.random_numbers import normal, uniform

__all__ = ["SPLITS", "Draw", "draw_quadratic"]

SPLITS = ("train", "validation", "selection", "test")
"""The rows of `Draw.optima`."""

# Property -> stream of random numbers, by position: append, never reorder.
_STREAMS = (
    *("dims", "condition", "spectrum", "preconditioner", "noise", "shift", "floor", "loss_scale"),
    *("lr_factor", "profile", "validation", "spread", "step_noise", "weight", "ratio", "signs"),
    *("size", "optimum_sample", "split_sample"),
)


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
