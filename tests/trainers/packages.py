"""Finds other people's trainers, which stand in a folder of their own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Nothing is asked of the network, installed, or written into a home folder.
QUIETLY = {
    "HF_HUB_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_CONFIG_DIR": str(Path(tempfile.gettempdir()) / "yolo"),
    "YOLO_OFFLINE": "true",
}
_KEPT: list[Any] = []  # a torch library's definitions end with the object


def find_trainers() -> None:
    """Let the packages be found that ``TRIMTAB_TRAINERS`` holds; torchvision is made to load.

    They stand apart because torchvision's default build does not load beside a CPU build of
    PyTorch: what Transformers, Lightning and torchmetrics find installed, they import.
    """
    folder = os.environ.get("TRIMTAB_TRAINERS")
    if not folder or str(Path(folder).resolve()) in sys.path:
        return
    sys.path.append(
        str(Path(folder).resolve())
    )  # last: nothing there stands in the way of what is installed
    for variable, value in QUIETLY.items():
        os.environ.setdefault(variable, value)
    if importlib.util.find_spec("torchvision") is not None:
        _load_torchvision()


def _load_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _define_operators()
        importlib.import_module("torchvision")
        importlib.import_module("torchvision.ops.boxes")._assert_has_ops = lambda: None


def _define_operators() -> None:
    """Define what torchvision's binaries would, as far as its Python asks for it."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    _KEPT.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
        order, kept = scores.argsort(descending=True), []
        area = (dets[:, 2:] - dets[:, :2]).prod(1)
        while len(order):
            first, order = order[0], order[1:]
            kept.append(first)
            inner = torch.minimum(dets[first, 2:], dets[order, 2:])
            inner = (inner - torch.maximum(dets[first, :2], dets[order, :2])).clamp(min=0).prod(1)
            order = order[inner / (area[first] + area[order] - inner) <= iou_threshold]
        return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long)

    library.impl("nms", nms, "CPU")
