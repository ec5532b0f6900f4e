"""TensorBoard: one folder a run, written as event files without TensorFlow or PyTorch."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trimtab.core.decision import Decision, Recorder, RunInfo, Summary
from trimtab.records.trackers import fields

_COUNT = itertools.count()


class TensorBoardTracker(Recorder):
    """Writes a run as scalars and texts at their steps.

    Args:
        folder: What ``tensorboard --logdir`` is given; the run gets a folder in it.
        info: What is known of the run.
        run: Its number in the store; None without one.
        goes_on: Whether to go on in the newest folder of that run.

    Attributes:
        folder: The run's own folder.

    Raises:
        ModuleNotFoundError: ``tensorboard`` is not installed.
        OSError: The folder cannot be written.
    """

    def __init__(
        self, folder: str, info: RunInfo, *, run: int | None = None, goes_on: bool = False
    ) -> None:
        self.folder = _folder_of(Path(folder), fields.run_name(info, run), goes_on)
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._purges = goes_on
        self._last_step = 0
        self._open()
        settings = fields.settings_of(info)
        if not goes_on:
            table = "".join(f"| {_cell(n)} | {_cell(v)} |\n" for n, v in settings.items())
            self._write(0, {}, {"run": f"| setting | value |\n|---|---|\n{table}"})

    def decision(self, decision: Decision) -> None:
        """Write a decision's numbers, and its reasons as a text."""
        self._last_step = max(self._last_step, decision.step)
        if self._purges:
            self._purge_from(decision.step)
        texts = {"decisions": _plain(fields.explain(decision))}
        self._write(decision.step, fields.decision_numbers(decision), texts)

    def finish(self, summary: Summary, status: str) -> None:
        """Write the schedule of all steps and the run's figures, and close the file."""
        for step, numbers in fields.schedule_points(summary):
            self._write(step, numbers, {}, flush=False)
        self._last_step = max(self._last_step, summary.spent_steps)
        texts = {"summary": _plain(fields.summary_text(summary, status))}
        self._write(self._last_step, fields.end_numbers(summary), texts)
        self._close()

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Write figures known after the end, in a file of their own if the first is closed."""
        was_closed = self._file is None
        self._write(self._last_step, fields.figure_numbers(figures), {})
        if was_closed:
            self._close()

    # Inside.

    def _open(self) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{fields.safe_name(socket.gethostname())}"
        self._file = (self.folder / f"{name}.{os.getpid()}.{next(_COUNT)}").open("wb")
        self._writer = RecordWriter(self._file)
        first = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        self._writer.write(first.SerializeToString())

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _purge_from(self, step: int) -> None:
        """Let readers forget what an interrupted process wrote from this step on."""
        from tensorboard.compat.proto import event_pb2

        self._purges = False
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        event = event_pb2.Event(wall_time=time.time(), step=step, session_log=start)
        self._writer.write(event.SerializeToString())

    def _write(
        self,
        step: int,
        numbers: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        flush: bool = True,
    ) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=number)
            for tag, number in numbers.items()
        ]
        values += [_text_value(tag, text) for tag, text in texts.items()]
        if self._file is None:
            self._open()
        summary = summary_pb2.Summary(value=values)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.write(event.SerializeToString())
        if flush and self._file is not None:
            self._file.flush()


def _folder_of(root: Path, name: str, goes_on: bool) -> Path:
    """Return a run's folder: one that is new, or the newest of a run that goes on."""
    count = 1
    while (root / _numbered(name, count)).exists():
        count += 1
    return root / _numbered(name, max(count - 1, 1) if goes_on else count)


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}-{count}"


def _text_value(tag: str, text: str) -> Any:
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2

    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _plain(text: str) -> str:
    """Return a text that Markdown, which TensorBoard shows texts as, leaves as it is."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~" else char for char in text)


def _cell(value: Any) -> str:
    return _plain(" ".join(str(value).split()))
