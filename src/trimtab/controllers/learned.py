"""The learned policy at run time: a forward pass in NumPy, and the file that it comes from.

The network has one token a hyperparameter with shared weights, so their number and order are
free: each token reads the global features and its own, exchanges a mean with the others, passes a
gated recurrent unit of its own (Cho et al., 2014, arXiv 1406.1078; the variant with the reset
gate after the matrix product) and gives the logits of its moves; the mean of all tokens' states
gives those of restore. `forward` is written against an array namespace: meta-training traces the
same function with jax.numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.array_namespace import SCALAR_NUMPY
from trimtab.core.errors import PolicyFileError, SpecError
from trimtab.core.features import GLOBAL_FEATURES, token_size
from trimtab.core.nested_state import (
    array_bytes,
    content_digest,
    is_pickle_or_zip,
    safetensors_header,
)
from trimtab.core.spec import MOVES, ControlSpec

POLICY_FORMAT = "trimtab-policy-1"
_N_GLOBAL = len(GLOBAL_FEATURES)
_BLOCK = token_size(ControlSpec())
_MOVES = np.asarray(MOVES, np.float32)
_PLACES = np.arange(len(MOVES))
_EXTRA = ("novelty_mean", "novelty_scale", "novelty_limit")
_OVER_BEST = [name for name, *_ in GLOBAL_FEATURES].index("val_over_best")
_NEVER = np.array([0.0, -1e4], np.float32)  # to logits of going on and of restoring
_TEXTS = ("format", "name", "spec", "spec_hash", "about")
_LARGEST_FILE = 256 * 2**20  # bytes; a policy has some 150 thousand
_LONGEST_HEADER = 2**20


def parameter_shapes(width: int, block: int = _BLOCK) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the network's arrays for a hidden width and a token's block."""
    return {
        "token_w": (_N_GLOBAL + block, width),
        "token_b": (width,),
        "mix_w": (2 * width, width),
        "mix_b": (width,),
        "gate_x": (width, 3 * width),
        "gate_h": (width, 3 * width),
        "gate_b": (3 * width,),
        "move_w": (2 * width, len(MOVES)),
        "move_b": (len(MOVES),),
        "restore_w": (2 * width, 2),
        "restore_b": (2,),
    }


def token_block(parameters: Mapping[str, Any]) -> int:
    """Return the length of a hyperparameter's block in the observations that a network reads."""
    return int(parameters["token_w"].shape[0]) - _N_GLOBAL


def _sigmoid(value: Any, xp: Any) -> Any:
    return xp.float32(0.5) * (xp.tanh(value * xp.float32(0.5)) + xp.float32(1.0))


def forward(
    parameters: Mapping[str, Any], observation: Any, hidden: Any, xp: Any
) -> tuple[Any, Any, Any]:
    """Return move logits (H, 7), restore logits (2,) and the next hidden state (H, width).

    Where nothing better was seen than now, restoring is masked: its logit is 10,000 lower (invalid
    action masking: Huang & Ontanon, 2020, arXiv 2006.14171).

    Args:
        parameters: Arrays of `parameter_shapes`, float32.
        observation: (n,) float32 as `trimtab.core.features` lays it out.
        hidden: (H, width) float32; zeros before the first decision.
        xp: ``numpy`` or ``jax.numpy``.
    """
    width = hidden.shape[-1]
    tokens = observation[_N_GLOBAL:].reshape(-1, token_block(parameters))  # (H, block)
    shared = observation[:_N_GLOBAL] @ parameters["token_w"][:_N_GLOBAL]
    own = tokens @ parameters["token_w"][_N_GLOBAL:]
    token = xp.tanh(own + (shared + parameters["token_b"])[None, :])  # (H, width)
    mean = xp.mean(token, axis=0) @ parameters["mix_w"][width:]
    mixed = xp.tanh(token @ parameters["mix_w"][:width] + (mean + parameters["mix_b"])[None, :])
    from_input = mixed @ parameters["gate_x"] + parameters["gate_b"][None, :]
    from_hidden = hidden @ parameters["gate_h"]
    gates = _sigmoid(from_input[:, : 2 * width] + from_hidden[:, : 2 * width], xp)
    update, reset = gates[:, :width], gates[:, width:]
    candidate = xp.tanh(from_input[:, 2 * width :] + reset * from_hidden[:, 2 * width :])
    following = update * hidden + (xp.float32(1.0) - update) * candidate
    state = xp.concatenate([following, mixed], axis=-1)  # (H, 2 width)
    moves = state @ parameters["move_w"] + parameters["move_b"][None, :]
    restore = xp.mean(state, axis=0) @ parameters["restore_w"] + parameters["restore_b"]
    has_better = observation[_OVER_BEST] > 0
    return moves, xp.where(has_better, restore, restore + xp.asarray(_NEVER)), following


@dataclass(frozen=True)
class PolicyFile:
    """A policy as it is kept: the spec that it was made under, its arrays, and what it is.

    Attributes:
        name: Such as ``"trimtab-1"``.
        spec: The contract; the hyperparameters in it are those that it was trained with.
        parameters: Name -> float32 array, see `parameter_shapes`.
        novelty: Mean, scale and limit of the observations met in training; empty if unknown.
        about: Free text fields for the card, name -> text.
    """

    name: str
    spec: ControlSpec
    parameters: Mapping[str, np.ndarray]
    novelty: Mapping[str, np.ndarray]
    about: Mapping[str, str]


def write_policy(path: str | Path, policy: PolicyFile) -> None:
    """Write a policy as safetensors with its spec inside, and the hash of everything in it."""
    from safetensors.numpy import save

    arrays = {**policy.parameters, **policy.novelty}
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
    about = {key: str(value) for key, value in policy.about.items()}
    metadata = {
        "format": POLICY_FORMAT,
        "name": policy.name,
        "spec": policy.spec.to_json(),
        "spec_hash": policy.spec.compatibility_hash(),
        "about": json.dumps(about, sort_keys=True),
    }
    metadata["sha256"] = _digest(metadata, tensors)
    target = Path(path)
    partial = target.with_suffix(target.suffix + ".partial")
    partial.write_bytes(save(tensors, metadata=metadata))
    partial.replace(target)


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the hash of a policy's texts and arrays."""
    return content_digest({key: metadata[key] for key in _TEXTS}, array_bytes(arrays))


def policy_file_digest(path: str | Path) -> str:
    """Return 16 hexadecimal digits that name a policy file: of the hash of its bytes.

    Studies and comparisons keep them and compare them when they go on.

    Raises:
        OSError: The file cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def parameters_digest(policy: PolicyFile) -> str:
    """Return 16 hexadecimal digits that name a policy's arrays, whatever file they came from.

    Rows of evaluations are kept under them.
    """
    digest = hashlib.sha256()
    for name in sorted(policy.parameters):
        digest.update(np.ascontiguousarray(policy.parameters[name]).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return a policy file's header and, of the same reading, all its bytes."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise PolicyFileError(
                f"policy {path} has {path.stat().st_size} bytes, above {_LARGEST_FILE}; "
                "name a policy file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise PolicyFileError(
            f"policy {path}: {error.strerror or error}; name a readable policy file"
        ) from error
    if is_pickle_or_zip(data):
        raise PolicyFileError(
            f"policy {path} is a pickle or zip archive; only safetensors policies are loaded, "
            "since a pickle can run code"
        )
    try:
        metadata = safetensors_header(data, _LONGEST_HEADER).get("__metadata__", {})
    except (ValueError, AttributeError, MemoryError, RecursionError) as error:
        raise PolicyFileError(
            f"policy {path} is not a safetensors file or is truncated ({len(data)} bytes); "
            "get it again or train one with 'trimtab learn'"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != POLICY_FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise PolicyFileError(
            f"policy {path} has format {found!r}, expected {POLICY_FORMAT!r}; "
            "it was not written by this version of trimtab"
        )
    unknown = sorted(set(metadata) - {*_TEXTS, "sha256"})
    if unknown or not all(isinstance(value, str) for value in metadata.values()):
        raise PolicyFileError(
            f"policy {path}: its header is damaged (unknown {unknown or 'values'}); get it again"
        )
    return metadata, data


def read_policy_header(path: str | Path) -> dict[str, Any]:
    """Return ``name``, ``spec`` (a `ControlSpec`), ``spec_hash`` and ``about`` of a policy file.

    Raises:
        PolicyFileError: The file is unreadable, truncated, foreign, or a pickle.
    """
    metadata, _ = _read(Path(path))
    return _contract(path, metadata)


def _contract(path: str | Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `read_policy_header` does, of a header that was read."""
    try:
        spec = ControlSpec.from_json(metadata["spec"])
        about = json.loads(metadata["about"])
        name, kept = metadata["name"], metadata["spec_hash"]
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise PolicyFileError(f"policy {path}: its header is damaged ({error})") from error
    if not isinstance(about, dict):
        raise PolicyFileError(f"policy {path}: its header is damaged (about is {about!r})")
    if spec.compatibility_hash() != kept:
        raise PolicyFileError(
            f"policy {path} was made for contract {kept}, this version of trimtab reads it as "
            f"{spec.compatibility_hash()}; use the version that made it, or train it again"
        )
    return {"name": name, "spec": spec, "spec_hash": kept, "about": about}


def read_policy(path: str | Path) -> PolicyFile:
    """Return the policy in a file; nothing in the file is executed.

    Raises:
        PolicyFileError: The file is unreadable, truncated, foreign, a pickle, its arrays do not
            have the shapes of the network, or it was changed after it was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    metadata, data = _read(Path(path))
    header = _contract(path, metadata)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PolicyFileError(f"policy {path} is damaged: {error}; get it again") from error
    expected, found = metadata.get("sha256"), _digest(metadata, arrays)
    if expected != found:
        told = repr(expected[:12]) if isinstance(expected, str) else "none"
        raise PolicyFileError(
            f"policy {path} was changed after it was written (sha256 {found[:12]!r}, the file "
            f"says {told}); get it again"
        )
    _check_arrays(path, arrays, token_size(header["spec"]))
    parameters = {name: value for name, value in arrays.items() if name not in _EXTRA}
    novelty = {name: arrays[name] for name in _EXTRA if name in arrays}
    return PolicyFile(header["name"], header["spec"], parameters, novelty, header["about"])


def _check_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], block: int) -> None:
    """Raise unless these are the arrays of a network, all of them and no others."""
    biases = arrays.get("token_b", np.zeros(0))
    expected = parameter_shapes(biases.shape[0] if biases.ndim == 1 else 0, block)
    if any(name in arrays for name in _EXTRA):
        expected |= dict(zip(_EXTRA, ((_N_GLOBAL,), (_N_GLOBAL,), (1,)), strict=True))
    found = {name: tuple(value.shape) for name, value in arrays.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise PolicyFileError(f"policy {path}: array {wrong[0]!r} has an unexpected shape or name")
    for name, value in arrays.items():
        if value.dtype != np.float32:
            raise PolicyFileError(
                f"policy {path}: array {name!r} is of {value.dtype}, not float32; get it again"
            )
        if not np.all(np.isfinite(value)):
            raise PolicyFileError(f"policy {path}: array {name!r} holds non-finite numbers")


class LearnedController:
    """A policy from a file, making the mean of its distribution over moves.

    The mean was measured to do less harm at a tuned start than the likeliest move (see
    ``benchmarks/learning``).

    Raises:
        SpecError: The policy was not made for ``multi-discrete`` actions.
    """

    guarded = True
    reads_losses = True

    def __init__(self, policy: PolicyFile) -> None:
        if policy.spec.actions != "multi-discrete":
            raise SpecError(
                f"policy {policy.name}: actions={policy.spec.actions!r}; "
                "the network answers multi-discrete actions only"
            )
        self.name = policy.name
        self.policy = policy
        self._parameters = {k: np.asarray(v, np.float32) for k, v in policy.parameters.items()}
        self._width = self._parameters["token_b"].shape[0]
        self._hidden: np.ndarray | None = None

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """The network's arrays by name, as `forward` takes them."""
        return self._parameters

    def reset(self, *, seed: int) -> None:
        """Forget the last run; the seed is not used, since nothing is drawn."""
        del seed
        self._hidden = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return (H + 1,) float32: a place among ``MOVES`` each, then 1 to restore or 0."""
        n_tokens = (len(observation) - _N_GLOBAL) // token_block(self._parameters)
        if self._hidden is None or len(self._hidden) != n_tokens:
            self._hidden = np.zeros((n_tokens, self._width), np.float32)
        moves, restore, self._hidden = forward(
            self._parameters, observation, self._hidden, SCALAR_NUMPY
        )
        likely = np.exp(moves - moves.max(axis=-1, keepdims=True))
        expected = (likely * _MOVES).sum(-1) / likely.sum(-1)
        action = np.empty(n_tokens + 1, np.float32)
        action[:-1] = np.interp(expected, _MOVES, _PLACES)
        action[-1] = restore.argmax()
        return action

    def is_novel(self, observation: np.ndarray) -> bool:
        """Return whether the global features look like nothing met in training.

        The score is the mean squared distance from the training mean in units of its scale; the
        limit was set when the policy was made.
        """
        if not self.policy.novelty:
            return False
        mean, scale, limit = (self.policy.novelty[name] for name in _EXTRA)
        return bool((((observation[:_N_GLOBAL] - mean) / scale) ** 2).mean() > limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the recurrent state as nested lists; float32 survives exactly."""
        hidden = None if self._hidden is None else self._hidden.astype(np.float64).tolist()
        return {"hidden": hidden}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        hidden = state["hidden"]
        self._hidden = None if hidden is None else np.asarray(hidden, np.float32)
