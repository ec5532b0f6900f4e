"""The properties of one simulated fine-tuning task, each drawn from a key of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.envs.simulators.datasets import FEATURES, MAX_CLASSES, Rows
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.family import OPTIMISERS

SLOTS: dict[str, tuple[int, int]] = {
    "train": (0, 1100),
    "validation": (1100, 256),
    "selection": (1356, 256),
    "test": (1612, 512),
}
"""First slot and number of slots of each split in `Draw.rows` and `Draw.labels`."""

EVENT_KINDS: tuple[str, ...] = ("none", *distributions()["events"]["kinds"])
"""Mid-run events in the order of their codes."""

PROPERTIES: tuple[str, ...] = (
    "log10 training samples / 3",
    "log10 validation samples / 3",
    "label noise",
    "noisy validation labels",
    "log10 imbalance",
    "classes / 10",
    "adam",
    "adamw",
    "sgd",
    "rmsprop",
    "log10 hidden learning-rate factor",
    "log10 hidden decay factor",
    "log10 loss scale / 2",
    "log10 weight scale / 2",
    "log10 input scale",
    "frozen depth",
    "pretrained on the same inputs",
    "event ahead",
    "log10 event step / 3",
)
"""What each element of `property_vector` is."""

_ORDER = [  # appended to and never reordered: a property's place is its key
    "data_set",
    "classes",
    "grouping",
    "n_train",
    "n_validation",
    "noise",
    "noise_amount",
    "noise_draw",
    "noisy_validation",
    "imbalance",
    "imbalance_amount",
    "thinning",
    "split",
    "scale",
    "shift",
    "shifted",
    "rotation",
    "rotation_share",
    "rotation_pick",
    "rotation_angle",
    "network",
    "same_set",
    "head_scale",
    "head",
    "frozen",
    "frozen_amount",
    "optimiser",
    "lr_factor",
    "decay_factor",
    "weight_scale",
    "tensor_scale",
    "loss_scale",
    "ratio",
    "clip",
    "event",
    "event_kind",
    "event_step",
]
_KEY_OF = {name: index for index, name in enumerate(_ORDER)}


class Draw(NamedTuple):
    """One task. Scalars are () arrays; T is the number of trainable tensors of the variant.

    Attributes:
        rows: (2124,) int32 rows of the bank's inputs; see `SLOTS`.
        labels: (2124,) int32 class of each slot, noise included.
        n_train: int32 samples in use of each split ...
        n_validation: int32.
        n_selection: int32.
        n_test: int32.
        classes: int32, classes of the task.
        gain: (64,) float32, transform of the inputs: ``gain x + turn roll(x, 32) + shift``.
        turn: (64,) float32.
        shift: (64,) float32.
        network: uint32, picks the pretrained network (see `same_set`).
        data_set: int32, index of the data set.
        same_set: float32, 1 if the network was pretrained on this set's inputs.
        head_scale: float32, standard deviation of the new head's weights times sqrt(inputs).
        frozen: float32, share of the layers, from the input, that is not trained.
        optimiser: int32, index into `OPTIMISERS`.
        lr_factor: float32, hidden; the given rate is multiplied by it.
        decay_factor: float32, the same for weight decay.
        scale: float32, a of the re-parameterisation w = a v.
        tensor_scale: (T,) float32, further factor of each tensor; mean of the logarithm 0.
        loss_scale: float32, the loss is multiplied by it.
        ratio: float32, the reported update-to-weight ratio is multiplied by it.
        clip: float32, ``clip = 1`` is this many times the first gradient's norm.
        noise: float32, share of training labels replaced.
        noisy_validation: float32, 1 if validation labels are noisy too.
        imbalance: float32, share kept of the rarest class.
        event: int32, index into `EVENT_KINDS`.
        event_step: int32, optimiser step at which it happens.
    """

    rows: jax.Array
    labels: jax.Array
    n_train: jax.Array
    n_validation: jax.Array
    n_selection: jax.Array
    n_test: jax.Array
    classes: jax.Array
    gain: jax.Array
    turn: jax.Array
    shift: jax.Array
    network: jax.Array
    data_set: jax.Array
    same_set: jax.Array
    head_scale: jax.Array
    frozen: jax.Array
    optimiser: jax.Array
    lr_factor: jax.Array
    decay_factor: jax.Array
    scale: jax.Array
    tensor_scale: jax.Array
    loss_scale: jax.Array
    ratio: jax.Array
    clip: jax.Array
    noise: jax.Array
    noisy_validation: jax.Array
    imbalance: jax.Array
    event: jax.Array
    event_step: jax.Array


class Pool(NamedTuple):
    """What tasks of a family are drawn from, by static choice of the family.

    Attributes:
        rows: The data sets, one below the other.
        data_shares: Probability of each set, up to a factor.
        optimisers: Names.
        optimiser_shares: Probability of each, up to a factor.
        clean: Whether labels are right and every training sample is used.
    """

    rows: Rows
    data_shares: tuple[float, ...]
    optimisers: tuple[str, ...]
    optimiser_shares: tuple[float, ...]
    clean: bool = False


class _Source:
    """Draws from a task's key; each named property has a key of its own."""

    def __init__(self, key: jax.Array) -> None:
        self._key = key

    def key(self, name: str) -> jax.Array:
        return jax.random.fold_in(self._key, _KEY_OF[name])

    def uniform(
        self, name: str, bounds: Any = (0.0, 1.0), shape: tuple[int, ...] = ()
    ) -> jax.Array:
        low, high = bounds
        return jax.random.uniform(self.key(name), shape, jnp.float32, low, high)

    def decimal(self, name: str, bounds: Any, shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.float32(10.0) ** self.uniform(name, bounds, shape)

    def chance(self, name: str, probability: float) -> jax.Array:
        return self.uniform(name) < probability

    def pick(self, name: str, shares: Any) -> jax.Array:
        ends = np.cumsum(np.asarray(shares, np.float64) / np.sum(shares))[:-1].astype(np.float32)
        return (self.uniform(name) >= jnp.asarray(ends)).sum().astype(jnp.int32)


def draw_task(key: jax.Array, pool: Pool, n_tensors: int, *, events: bool) -> Draw:
    """Return one task from the documented distributions.

    Args:
        key: Of the task; equal keys give equal tasks in every variant.
        pool: Data sets and optimisers to draw from.
        n_tensors: Number T of trainable tensors of the variant.
        events: Whether mid-run events happen.
    """
    source = _Source(key)
    return Draw(
        **_draw_samples(source, pool),
        **_draw_inputs(source),
        **_draw_network(source),
        **_draw_optimiser(source, pool, n_tensors),
        **_draw_event(source, events),
    )


def _draw_samples(source: _Source, pool: Pool) -> dict[str, jax.Array]:
    table, stack = distributions()["data"], pool.rows
    chosen = source.pick("data_set", pool.data_shares)
    size, start = jnp.asarray(stack.sizes)[chosen], jnp.asarray(stack.starts)[chosen]
    base_classes = jnp.asarray(stack.n_classes)[chosen]
    low, high = table["classes"]
    wanted = source.uniform("classes", (low, high + 1.0)).astype(jnp.int32)
    classes = jnp.clip(wanted, low, base_classes)

    # base classes in random order, the unused ones last; dealt out to the new classes in turn
    order_key = source.uniform("grouping", shape=(MAX_CLASSES,))
    used = jnp.arange(MAX_CLASSES) < base_classes
    rank = jnp.argsort(jnp.argsort(jnp.where(used, order_key, 2.0))).astype(jnp.int32)
    grouping = rank % classes

    imbalance = jnp.where(
        source.chance("imbalance", table["imbalance_probability"]),
        source.decimal("imbalance_amount", table["imbalance_log10"]),
        1.0,
    )
    keep = imbalance ** (
        jnp.arange(MAX_CLASSES, dtype=jnp.float32) / jnp.maximum(classes - 1, 1).astype(jnp.float32)
    )

    n_rows = int(stack.sizes.max())
    position = jnp.arange(n_rows, dtype=jnp.int32)
    row = start + jnp.minimum(position, size - 1)
    label = grouping[jnp.asarray(stack.labels)[row]]
    kept = (source.uniform("thinning", shape=(n_rows,)) < keep[label]) & (position < size)
    # one sort of 32-bit keys: random bits above, position below, what is not kept last
    bits = jax.random.bits(source.key("split"), (n_rows,), jnp.uint32) >> 13 << 12
    bits = bits | jnp.where(kept, jnp.uint32(0), jnp.uint32(0x80000000))
    shuffled = jnp.sort(bits | position.astype(jnp.uint32)) & np.uint32(0xFFF)

    counts = _split_counts(source, table, kept.sum().astype(jnp.int32), pool.clean)
    slot_position = _slot_positions(counts, n_rows)
    rows = start + shuffled[slot_position].astype(jnp.int32)
    labels = grouping[jnp.asarray(stack.labels)[rows]]
    noise, noisy_validation, labels = _noisy_labels(source, table, labels, classes, pool.clean)
    return {
        "rows": rows,
        "labels": labels,
        "n_train": counts[0],
        "n_validation": counts[1],
        "n_selection": counts[2],
        "n_test": counts[3],
        "classes": classes,
        "data_set": chosen,
        "noise": noise,
        "noisy_validation": noisy_validation,
        "imbalance": imbalance,
    }


def _split_counts(
    source: _Source, table: dict[str, Any], n_kept: jax.Array, clean: bool
) -> list[jax.Array]:
    """Return the numbers of training, validation, selection and test samples; they fit."""
    kept = n_kept.astype(jnp.float32)

    def share(split: str) -> jax.Array:
        most = (kept * table[f"{split}_share"]).astype(jnp.int32)
        return jnp.clip(most, 1, SLOTS[split][1])

    test, selection = share("test"), share("selection")
    wanted = source.decimal("n_validation", table["n_validation_log10"]).astype(jnp.int32)
    validation = jnp.minimum(wanted, share("validation"))
    left = jnp.maximum(n_kept - test - selection - validation, 1)
    wanted = source.decimal("n_train", table["n_train_log10"]).astype(jnp.int32)
    wanted = jnp.full_like(wanted, SLOTS["train"][1]) if clean else wanted
    return [jnp.minimum(wanted, left), validation, selection, test]


def _slot_positions(counts: list[jax.Array], n_rows: int) -> jax.Array:
    """Return (2124,) int32 places in the shuffled rows; idle slots repeat their split's first."""
    blocks, start = [], jnp.int32(0)
    for split, count in zip(
        ("test", "selection", "validation", "train"), counts[::-1], strict=True
    ):
        offset = jnp.arange(SLOTS[split][1], dtype=jnp.int32)
        blocks.append(start + jnp.where(offset < count, offset, 0))
        start = start + count
    return jnp.minimum(jnp.concatenate(blocks[::-1]), n_rows - 1)


def _noisy_labels(
    source: _Source, table: dict[str, Any], labels: jax.Array, classes: jax.Array, clean: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    noise = jnp.where(
        source.chance("noise", 0.0 if clean else table["label_noise_probability"]),
        source.uniform("noise_amount", table["label_noise"]),
        0.0,
    )
    noisy_validation = source.chance("noisy_validation", table["noisy_validation_probability"])
    number = source.uniform("noise_draw", shape=(2, len(labels)))
    slot = np.arange(len(labels))
    first, n_validation = SLOTS["validation"]
    in_validation = (slot >= first) & (slot < first + n_validation)
    may_flip = jnp.asarray(slot < first) | (jnp.asarray(in_validation) & noisy_validation)
    other = (number[1] * classes.astype(jnp.float32)).astype(jnp.int32)
    labels = jnp.where((number[0] < noise) & may_flip, jnp.minimum(other, classes - 1), labels)
    shown = jnp.where(noise > 0, noisy_validation.astype(jnp.float32), 0.0)
    return noise, shown, labels


def _draw_inputs(source: _Source) -> dict[str, jax.Array]:
    table = distributions()["data"]
    scale = source.decimal("scale", table["input_scale_log10"])
    shifted = source.chance("shifted", 0.5).astype(jnp.float32)
    shift = table["input_shift"] * jax.random.normal(source.key("shift"), (FEATURES,)) * shifted
    planes = FEATURES // 2
    turned = source.chance("rotation", table["rotation_probability"])
    share = source.uniform("rotation_share", table["rotation_share"])
    picked = turned & (source.uniform("rotation_pick", shape=(planes,)) < share)
    half_turn = float(np.pi)
    drawn_angle = source.uniform("rotation_angle", (-half_turn, half_turn), (planes,))
    angle = jnp.where(picked, drawn_angle, 0.0)
    # plane (i, i + 32): x_i' = cos x_i - sin x_{i+32}; x_{i+32}' = cos x_{i+32} + sin x_i
    return {
        "gain": scale * jnp.tile(jnp.cos(angle), 2),
        "turn": scale * jnp.concatenate([-jnp.sin(angle), jnp.sin(angle)]),
        "shift": scale * shift,
    }


def _draw_network(source: _Source) -> dict[str, jax.Array]:
    table = distributions()["network"]
    frozen = source.uniform("frozen_amount", table["frozen_depth"])
    scale = source.uniform("head", table["head_scale"])
    return {
        "network": jax.random.bits(source.key("network"), (), jnp.uint32),
        "same_set": source.chance("same_set", table["same_set_probability"]).astype(jnp.float32),
        "head_scale": jnp.where(source.chance("head_scale", 0.5), 0.0, scale),
        "frozen": jnp.where(source.chance("frozen", table["frozen_probability"]), frozen, 0.0),
    }


def _draw_optimiser(source: _Source, pool: Pool, n_tensors: int) -> dict[str, jax.Array]:
    table = distributions()["optimiser"]
    codes = jnp.asarray([OPTIMISERS.index(name) for name in pool.optimisers], jnp.int32)
    spread = source.uniform("tensor_scale", table["tensor_scale_log10"], (n_tensors,))
    return {
        "optimiser": codes[source.pick("optimiser", pool.optimiser_shares)],
        "lr_factor": source.decimal("lr_factor", table["lr_factor_log10"]),
        "decay_factor": source.decimal("decay_factor", table["decay_factor_log10"]),
        "scale": source.decimal("weight_scale", table["scale_log10"]),
        "tensor_scale": jnp.float32(10.0) ** (spread - spread.mean()),
        "loss_scale": source.decimal("loss_scale", table["loss_scale_log10"]),
        "ratio": source.decimal("ratio", table["ratio_log10"]),
        "clip": source.decimal("clip", table["clip_log10"]),
    }


def _draw_event(source: _Source, events: bool) -> dict[str, jax.Array]:
    table = distributions()["events"]
    kind = 1 + source.pick("event_kind", [1.0] * (len(EVENT_KINDS) - 1))
    happens = source.chance("event", table["probability"] if events else 0.0)
    return {
        "event": jnp.where(happens, kind, 0),
        "event_step": source.decimal("event_step", table["step_log10"]).astype(jnp.int32),
    }


def property_vector(draw: Draw) -> jax.Array:
    """Return (19,) float32, named by `PROPERTIES`: what a policy may not see and a critic may."""

    def decades(value: jax.Array, per: float = 1.0) -> jax.Array:
        return jnp.log10(value.astype(jnp.float32)) / per

    one_hot = jax.nn.one_hot(draw.optimiser, len(OPTIMISERS), dtype=jnp.float32)
    happens = (draw.event > 0).astype(jnp.float32)
    return jnp.stack(
        [
            decades(draw.n_train, 3.0),
            decades(draw.n_validation, 3.0),
            draw.noise,
            draw.noisy_validation,
            decades(draw.imbalance),
            draw.classes.astype(jnp.float32) / MAX_CLASSES,
            *(one_hot[index] for index in range(len(OPTIMISERS))),
            decades(draw.lr_factor),
            decades(draw.decay_factor),
            decades(draw.loss_scale, 2.0),
            decades(draw.scale, 2.0),
            decades(jnp.sqrt(draw.gain[0] ** 2 + draw.turn[0] ** 2)),
            draw.frozen,
            draw.same_set,
            happens,
            happens * decades(draw.event_step, 3.0),
        ]
    )
