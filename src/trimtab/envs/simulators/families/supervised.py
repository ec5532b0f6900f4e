"""Simulated fine-tuning of a pretrained classifier, for any architecture.

It starts from a bank of pretrained networks; things happen to it from outside: bad batches, flipped
labels, spikes, NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.envs.simulators.datasets import MAX_CLASSES
from trimtab.envs.simulators.descent import (
    Effects,
    Interpreter,
    State,
    Travel,
    descend,
    usual_effects,
    usual_hyperparameters,
)
from trimtab.envs.simulators.distributions import distributions
from trimtab.envs.simulators.draws import EVENT_KINDS, SLOTS, Draw, Pool, draw_task, property_vector
from trimtab.envs.simulators.family import (
    EVALUATION_CHUNK,
    OPTIMISERS,
    SPLITS,
    FamilyOptions,
)
from trimtab.envs.simulators.networks import Architecture, Dropout, Layout, Tensor, merged
from trimtab.envs.simulators.random_numbers import batch_positions, mixed, uniform_hash

_BATCH = 64


def pretrained(
    architecture: Architecture, variant: int, pool: Pool, networks: int = 0
) -> jax.Array:
    """Return (N, P) float32: networks trained with Adam on regrouped labels of the data sets.

    Network i sees data set ``i % n_sets``, with classes regrouped at random and its own learning
    rate and number of steps, so that some are good starts and some are poor. Seeds are fixed.

    Args:
        architecture: What is trained.
        variant: Its shape.
        pool: Data sets.
        networks: About how many (a multiple of the data sets, one each at least); 0: as
            documented.
    """
    n_sets = len(pool.rows.sizes)
    wanted = networks or distributions()["network"]["bank_size"]
    size = max(wanted // n_sets, 1) * n_sets
    keys = jax.random.split(jax.random.fold_in(jax.random.key(20), variant), size)
    sets = jnp.arange(size, dtype=jnp.int32) % n_sets
    longest = int(10.0 ** distributions()["network"]["pretrain_steps_log10"][1])

    def train(rows: jax.Array, labels: jax.Array) -> jax.Array:
        def one(key: jax.Array, data_set: jax.Array) -> jax.Array:
            return _one(architecture, variant, pool, rows, labels, key, data_set, longest)

        return jax.vmap(one)(keys, sets)

    rows, labels = jnp.asarray(pool.rows.inputs), jnp.asarray(pool.rows.labels)
    return jax.block_until_ready(jax.jit(train)(rows, labels))


def _one(
    architecture: Architecture,
    variant: int,
    pool: Pool,
    rows: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    data_set: jax.Array,
    longest: int,
) -> jax.Array:
    table = distributions()["network"]
    keys = jax.random.split(key, 5)
    layout = architecture.layout(variant)
    start = jnp.asarray(pool.rows.starts)[data_set]
    size = jnp.asarray(pool.rows.sizes)[data_set].astype(jnp.uint32)
    n_groups = jax.random.randint(keys[0], (), 2, MAX_CLASSES + 1, jnp.int32)
    grouping = jax.random.permutation(keys[1], MAX_CLASSES).astype(jnp.int32) % n_groups
    lr = jnp.float32(10.0) ** jax.random.uniform(
        keys[2], (), jnp.float32, *table["pretrain_lr_log10"]
    )
    steps = jnp.float32(10.0) ** jax.random.uniform(
        keys[3], (), jnp.float32, *table["pretrain_steps_log10"]
    )
    weights = jnp.full(_BATCH, 1.0 / _BATCH, jnp.float32)
    params = layout.join(architecture.initial(variant, keys[4]), jnp)
    seed = jax.random.bits(keys[4], (), jnp.uint32)

    def loss_of(params: jax.Array, step: jax.Array) -> jax.Array:
        code = mixed(seed + step.astype(jnp.uint32))
        place = mixed(code + jnp.arange(_BATCH, dtype=jnp.uint32)) % size
        row = start + place.astype(jnp.int32)
        scores = architecture.logits(variant, layout.split(params), rows[row], weights, None)
        logs = jax.nn.log_softmax(scores)
        target = jax.nn.one_hot(grouping[labels[row]], MAX_CLASSES, dtype=jnp.float32)
        return -(target * logs).sum() / _BATCH

    def turn(
        step: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        params, first, second = carry
        gradient = jax.grad(loss_of)(params, step)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient * gradient
        rate = jnp.where(step < steps, lr, 0.0)
        return params - rate * first / (jnp.sqrt(second) + 1e-8), first, second

    empty = jnp.zeros_like(params)
    return lax.fori_loop(0, longest, turn, (params, empty, empty))[0]


_EVENT_STREAM = np.uint32(0x27D4EB2F)
_AUGMENTATION_STREAM = np.uint32(0x165667B1)


def augmentation(draw: Draw, seed: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return float32 noise of ``shape`` for the inputs of one step.

    Uniform with standard deviation ``s`` times the inputs' own scale; the task hides s, uniform
    between 0 and `most_noise` of the distributions.

    Args:
        draw: The task.
        seed: () uint32, the run's data order.
        step: () int32.
        shape: Of the inputs.
    """
    most = np.float32(distributions()["augmented"]["most_noise"])
    share = mixed(draw.network).astype(jnp.float32) * np.float32(2.0**-32)
    scale = jnp.sqrt((draw.gain**2 + draw.turn**2).mean())
    code = mixed(seed ^ mixed(step.astype(jnp.uint32) + _AUGMENTATION_STREAM))
    noise = (uniform_hash(code, 1, shape) - 0.5) * np.float32(np.sqrt(12.0))
    return share * most * scale * noise


def disturbed_batch(
    draw: Draw,
    inputs: jax.Array,
    labels: jax.Array,
    place: jax.Array,
    code: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return inputs and labels after corrupted-batch and label-flip events.

    A corrupted batch (three steps) has random labels and features five times too large; from a
    label flip on, three training samples in ten have the next class for good.

    Args:
        draw: The task.
        inputs: (B, ...).
        labels: (B,) int32.
        place: (B,) int32, which training samples they are.
        code: () uint32, random code of the step.
        step: () int32.
    """
    table = distributions()["events"]
    since = step - draw.event_step
    corrupt = (draw.event == EVENT_KINDS.index("corrupted-batch")) & (since >= 0)
    corrupt = corrupt & (since < table["corrupted_steps"])
    flips = (draw.event == EVENT_KINDS.index("label-flip")) & (since >= 0)
    number = uniform_hash(code ^ _EVENT_STREAM, 0, labels.shape)
    wrong = (number * draw.classes.astype(jnp.float32)).astype(jnp.int32)
    most = np.uint32(table["flipped_share"] * 2**32)
    chosen = mixed(place.astype(jnp.uint32) + np.uint32(77)) < most
    labels = jnp.where(flips & chosen, (labels + 1) % draw.classes, labels)
    labels = jnp.where(corrupt, jnp.minimum(wrong, draw.classes - 1), labels)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        inputs = inputs * jnp.where(corrupt, np.float32(table["corrupted_scale"]), 1.0)
    return inputs, labels


def disturbed_gradient(
    draw: Draw, loss: jax.Array, gradient: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return loss and gradient after gradient-spike and NaN events, each at one step.

    A NaN ends its window and costs a rollback here, where a run of PyTorch leaves the batch out:
    the shipped policies were trained so, and another rule would be another environment.
    """
    now = step == draw.event_step
    spike = now & (draw.event == EVENT_KINDS.index("gradient-spike"))
    broken = now & (draw.event == EVENT_KINDS.index("nan"))
    factor = jnp.where(spike, np.float32(distributions()["events"]["spike"]), 1.0)
    return jnp.where(broken, jnp.nan, loss), gradient * factor


_OF_FEATURES = ("simulated/mlp", "simulated/wide")
_UNEVEN_STREAM = 0x51ED
_HEAD_STREAM = np.uint32(0x7F4A7C15)
_DROPOUT_STREAM = np.uint32(0x5BD1E995)


class Bank(NamedTuple):
    """What all runs of a variant share.

    Attributes:
        rows: (R, ...) inputs of the data sets.
        networks: (N, P) float32, pretrained networks; network i saw data set i modulo their number.
    """

    rows: jax.Array
    networks: jax.Array


@dataclass(frozen=True)
class SupervisedFamily:
    """A `Family` of classifiers that are fine-tuned by gradient descent.

    The task is drawn by `draws.draw_task`; the run is the pretrained network with a new head,
    trained on batches of the task's training samples. Weights are stored divided by the task's
    scales (w = a v): learning rates act on v, so that `default_lr` is the rate at which a task
    without hidden factor would be trained as usual.

    Attributes:
        name: Registered name.
        architecture: Network shapes and data.
        options: What is offered and drawn.
        offered: Every hyperparameter of the family, the learning rate first.
        interpret: What they come to.
        evaluation_chunk: Runs that are best evaluated together.
    """

    name: str
    architecture: Architecture
    options: FamilyOptions = field(default_factory=FamilyOptions)
    offered: tuple[Hyperparameter, ...] = field(default_factory=usual_hyperparameters)
    interpret: Interpreter = usual_effects
    evaluation_chunk: int = EVALUATION_CHUNK

    def __post_init__(self) -> None:
        offered = {item.name for item in self.offered}
        for wanted in self.options.hyperparameters or ():
            if wanted not in offered:
                raise unknown_name("hyperparameter", wanted, offered)
        if self.options.uneven and self.name not in _OF_FEATURES:
            raise SpecError(
                f"uneven: True is of no use to {self.name}, whose inputs are pixels or tokens; "
                f"leave it out, or use {_OF_FEATURES[0]}"
            )

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Those that act, the learning rate first."""
        items = {item.name: item for item in self.offered}
        return tuple(items[name] for name in self.options.hyperparameters or items)

    @property
    def n_variants(self) -> int:
        """Number of network shapes."""
        return self.architecture.n_variants

    def bank(self, variant: int) -> Bank:
        """Return pretrained networks and data of a shape, built once a process in seconds."""
        self._check(variant)
        return _bank(self.architecture, variant, self.options.held_out, self.options.networks)

    def draw(self, variant: int, key: jax.Array) -> Draw:
        """Return a task; the same key gives the same task in every variant."""
        pool = self.architecture.pool(held_out=self.options.held_out)
        if self.options.optimisers:
            names = self.options.optimisers
            pool = pool._replace(optimisers=names, optimiser_shares=(1.0,) * len(names))
        if self.options.clean:
            pool = _cleaned(pool)
        n_tensors = len(self.layout(variant).tensors)
        draw = draw_task(key, pool, n_tensors, events=self.options.events)
        return _unevened(draw, key) if self.options.uneven else draw

    def layout(self, variant: int) -> Layout:
        """Return the trainable tensors of a shape: all, or adapters and head."""
        return _trainable(self.architecture, variant)

    def start(self, variant: int, bank: Bank, draw: Draw, key: jax.Array) -> State:
        """Return the pretrained network with a new head and an empty optimiser."""
        layout = self.layout(variant)
        tensors = self.architecture.layout(variant).split(self._base(bank, draw))
        for index, tensor in enumerate(layout.tensors):
            noise = jax.random.normal(jax.random.fold_in(key, index), tensor.shape, jnp.float32)
            n_inputs = max(int(np.prod(tensor.shape[:-1])), 1)
            noise = noise * np.float32(1.0 / np.sqrt(n_inputs))
            if tensor.name == "head.weight":
                tensors[tensor.name] = noise * draw.head_scale
            elif tensor.name.endswith(".down"):
                tensors[tensor.name] = noise
            elif tensor.name.endswith(".up") or tensor.name == "head.bias":
                tensors[tensor.name] = jnp.zeros(tensor.shape, jnp.float32)
        params = layout.join(tensors, jnp) / self._scales(layout, draw)
        empty = jnp.zeros(layout.size, jnp.float32)
        seed = jax.random.bits(jax.random.fold_in(key, len(layout.tensors)), (), jnp.uint32)
        travel = Travel.begin(params)
        return State(params, empty, empty, jnp.int32(0), jnp.float32(0), seed, travel)

    def advance(
        self,
        variant: int,
        bank: Bank,
        draw: Draw,
        state: State,
        values: jax.Array,
        reference: jax.Array,
        first_step: jax.Array,
        n_steps: jax.Array,
        max_steps: jax.Array,
    ) -> tuple[State, Metrics]:
        """Train one window; see `Family.advance`."""
        effects = self._effects(variant, draw, values)
        base = self.architecture.layout(variant).split(self._base(bank, draw))
        scales = self._scales(self.layout(variant), draw)

        def step(
            params: jax.Array, seed: jax.Array, step: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return self._step(variant, bank, draw, base, scales, effects, params, seed, step)

        return descend(
            step,
            state,
            effects,
            draw.optimiser,
            reference,
            first_step,
            n_steps,
            max_steps,
            clips=self._offers("clip"),
            clip_factor=draw.clip,
            ratio=draw.ratio,
        )

    def evaluate(
        self, variant: int, bank: Bank, draw: Draw, state: State, split: str
    ) -> tuple[jax.Array, jax.Array]:
        """Return () float32 (loss in the task's scale, accuracy) on a split.

        Raises:
            UnknownNameError: There is no such split.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        first, n_slots = SLOTS[split]
        rows, labels = draw.rows[first : first + n_slots], draw.labels[first : first + n_slots]
        count = getattr(draw, f"n_{split}")
        weights = (jnp.arange(n_slots, dtype=jnp.int32) < count).astype(jnp.float32)
        weights = weights / count.astype(jnp.float32)
        base = self.architecture.layout(variant).split(self._base(bank, draw))
        scales = self._scales(self.layout(variant), draw)
        tensors = self._tensors(variant, base, state.params * scales)
        inputs = self.architecture.inputs(bank.rows[rows], draw)
        logits = self.architecture.logits(variant, tensors, inputs, weights, None)
        logits = _masked(logits, draw.classes)
        losses = self._losses(logits, labels, draw, jnp.float32(0))
        hits = (logits.argmax(1).astype(jnp.int32) == labels).astype(jnp.float32)
        return draw.loss_scale * (losses * weights).sum(), (hits * weights).sum()

    def properties(self, draw: Draw) -> jax.Array:
        """Return (19,) float32 hidden properties, named by `properties.PROPERTIES`."""
        return property_vector(draw)

    def default_lr(self, draw: Draw) -> jax.Array:
        """Return () float32: the optimiser's usual rate for the weights' and loss's scale."""
        table = distributions()["optimiser"]
        sgd = table["lr_sgd"] / (draw.scale**2 * draw.loss_scale)
        adam = jnp.where(
            draw.optimiser == OPTIMISERS.index("rmsprop"), table["lr_rmsprop"], table["lr_adam"]
        )
        return jnp.where(draw.optimiser == OPTIMISERS.index("sgd"), sgd, adam / draw.scale)

    def forget(self, state: State) -> State:
        """Return the state with the optimiser's moments cleared."""
        empty = jnp.zeros_like(state.first)
        return state._replace(first=empty, second=empty, updates=jnp.zeros_like(state.updates))

    def _check(self, variant: int) -> None:
        if not 0 <= variant < self.n_variants:
            raise SpecError(
                f"variant: {variant} is outside 0..{self.n_variants - 1} of {self.name}; "
                "choose one of these"
            )

    def _offers(self, name: str) -> bool:
        return any(item.kind == name for item in self.hyperparameters)

    def _base(self, bank: Bank, draw: Draw) -> jax.Array:
        pool = self.architecture.pool(held_out=self.options.held_out)
        n_sets, n_networks = len(pool.rows.sizes), bank.networks.shape[0]
        any_one = draw.network % np.uint32(n_networks)
        turn = (draw.network % np.uint32(n_networks // n_sets)).astype(jnp.int32)
        same = draw.data_set + n_sets * turn
        return bank.networks[jnp.where(draw.same_set > 0, same, any_one.astype(jnp.int32))]

    def _scales(self, layout: Layout, draw: Draw) -> jax.Array:
        spread = draw.tensor_scale
        if self.options.augmented:
            spread = spread ** np.float32(distributions()["augmented"]["tensor_scale_power"])
        scales = draw.scale * spread
        if self.options.slow_head:
            low, high = distributions()["slow_head"]["scale_log10"]
            number = mixed(draw.network ^ _HEAD_STREAM).astype(jnp.float32) * np.float32(2.0**-32)
            slow = jnp.float32(10.0) ** (low + (high - low) * number)
            is_head = [tensor.name.startswith("head.") for tensor in layout.tensors]
            scales = jnp.where(np.asarray(is_head), scales * slow, scales)
        # broadcasts, not one gather of P elements: that was half the cost of an evaluation
        parts = [
            jnp.broadcast_to(scales[index], (tensor.size,))
            for index, tensor in enumerate(layout.tensors)
        ]
        return jnp.concatenate(parts)

    def _tensors(
        self, variant: int, base: Mapping[str, jax.Array], weights: jax.Array
    ) -> dict[str, jax.Array]:
        rank = self.architecture.adapter_rank(variant)
        return merged(base, self.layout(variant).split(weights), rank)

    def _effects(self, variant: int, draw: Draw, values: jax.Array) -> Effects:
        layout = self.layout(variant)
        given = {item.name: values[index] for index, item in enumerate(self.hyperparameters)}
        return self.interpret(layout, draw, self._scales(layout, draw), given)

    def _step(
        self,
        variant: int,
        bank: Bank,
        draw: Draw,
        base: Mapping[str, jax.Array],
        scales: jax.Array,
        effects: Effects,
        params: jax.Array,
        seed: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Return loss and gradient of one step, mid-run events included."""
        n_slots = 64 if self._offers("batch_size") else 32
        place = batch_positions(seed, step, effects.batch, n_slots, draw.n_train)
        inputs = self.architecture.inputs(bank.rows[draw.rows[place]], draw)
        used = jnp.arange(n_slots, dtype=jnp.int32) < effects.batch
        weights = used.astype(jnp.float32) / effects.batch.astype(jnp.float32)
        labels = draw.labels[place]
        if self.options.augmented and jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs + augmentation(draw, seed, step, inputs.shape)
        code = mixed(seed ^ (step.astype(jnp.uint32) * np.uint32(0x9E3779B9)))
        if self.options.events:
            inputs, labels = disturbed_batch(draw, inputs, labels, place, code, step)
        dropout = None
        if self._offers("dropout"):
            dropout = Dropout(effects.dropout, code ^ _DROPOUT_STREAM)

        layout, rank = self.layout(variant), self.architecture.adapter_rank(variant)

        def loss_of(trained: dict[str, jax.Array]) -> jax.Array:
            tensors = merged(base, trained, rank)
            logits = self.architecture.logits(variant, tensors, inputs, weights, dropout)
            losses = self._losses(_masked(logits, draw.classes), labels, draw, effects.smoothing)
            return draw.loss_scale * (losses * weights).sum()

        # by tensor, then joined: the gradient of slicing a flat vector costs a sum of padded ones
        loss, by_tensor = jax.value_and_grad(loss_of)(layout.split(params * scales))
        gradient = layout.join(by_tensor, jnp) * scales
        if not self.options.events:
            return loss, gradient
        return disturbed_gradient(draw, loss, gradient, step)

    def _losses(
        self, logits: jax.Array, labels: jax.Array, draw: Draw, smoothing: jax.Array
    ) -> jax.Array:
        """Return (B,) losses in nats, squared errors halved, or squared hinges."""
        classes = draw.classes.astype(jnp.float32)
        present = jnp.arange(MAX_CLASSES, dtype=jnp.int32) < draw.classes
        target = jax.nn.one_hot(labels, MAX_CLASSES, dtype=jnp.float32)
        if self._offers("label_smoothing"):
            even = present.astype(jnp.float32)[None, :] / classes
            target = (1.0 - smoothing) * target + smoothing * even
        if self.options.loss == "squared-error":
            error = jnp.where(present[None, :], logits - target, 0.0)
            return 0.5 * (error * error).sum(1)
        if self.options.loss == "margin":
            return _margin_losses(logits, target, present)
        shifted = logits - jax.lax.stop_gradient(logits.max(1, keepdims=True))
        log_total = jnp.log(jnp.exp(shifted).sum(1))
        return log_total - (target * shifted).sum(1)


def _unevened(draw: Draw, key: jax.Array) -> Draw:
    """Return the task of `FamilyOptions.uneven`: each input scaled by a factor of at most 1."""
    low, high = distributions()["uneven"]["spread_log10"]
    first, second = jax.random.split(jax.random.fold_in(key, _UNEVEN_STREAM))
    spread = jax.random.uniform(first, (), jnp.float32, low, high)
    exponent = -spread * jax.random.uniform(second, draw.gain.shape, jnp.float32)
    factor = jnp.float32(10.0) ** exponent
    return draw._replace(
        gain=draw.gain * factor, turn=draw.turn * factor, shift=draw.shift * factor
    )


def _cleaned(pool: Pool) -> Pool:
    """Return the pool of `FamilyOptions.clean`; its shares hold for the usual training sets."""
    shares = distributions()["clean"]["training_shares"]
    if len(shares) == len(pool.data_shares):
        pool = pool._replace(data_shares=tuple(shares))
    return pool._replace(clean=True)


def _masked(logits: jax.Array, classes: jax.Array) -> jax.Array:
    present = jnp.arange(MAX_CLASSES, dtype=jnp.int32) < classes
    return jnp.where(present[None, :], logits, np.float32(-1e4))


def _margin_losses(logits: jax.Array, target: jax.Array, present: jax.Array) -> jax.Array:
    """Return (B,) multi-class squared hinges: sum over j != y of max(0, 1 + z_j - z_y)^2.

    With smoothed labels the right class y is weighed by its target.

    Args:
        logits: (B, 10) scores z.
        target: (B, 10), rows sum to 1.
        present: (10,) bool, classes of the task; the others neither score nor count.

    Source: Weston and Watkins 1999, a hinge for every wrong class, squared as in Tang 2013
    (arXiv 1306.0239).
    """
    # (B, j, y)
    shortfall = jnp.maximum(1.0 + logits[:, :, None] - logits[:, None, :], 0.0)
    counted = present[:, None] & present[None, :] & ~np.eye(MAX_CLASSES, dtype=bool)
    squares = jnp.where(counted[None], shortfall * shortfall, 0.0)
    return (squares.sum(1) * target).sum(1)


@cache
def _trainable(architecture: Architecture, variant: int) -> Layout:
    whole, rank = architecture.layout(variant), architecture.adapter_rank(variant)
    if not rank:
        return whole
    tensors: list[Tensor] = []
    for tensor in whole.tensors:
        if tensor.name.startswith("head."):
            tensors.append(tensor)
        elif tensor.decays:
            n_inputs, n_outputs = int(np.prod(tensor.shape[:-1])), tensor.shape[-1]
            tensors.append(Tensor(f"{tensor.name}.down", (n_inputs, rank), tensor.layer))
            tensors.append(Tensor(f"{tensor.name}.up", (rank, n_outputs), tensor.layer))
    return Layout(tuple(tensors))


@cache
def _bank(architecture: Architecture, variant: int, held_out: bool, networks: int) -> Bank:
    pool = architecture.pool(held_out=held_out)
    rows = jnp.asarray(pool.rows.inputs)
    return Bank(rows, pretrained(architecture, variant, pool, networks))
