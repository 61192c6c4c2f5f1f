"""Pictures of an evaluation for TensorBoard: the confusion matrix and sample images."""

import io
import json
import time
from pathlib import Path

import altair as alt
import numpy as np
import vl_convert
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import image

from flaxcls.analysis.evaluation import Evaluation, worst
from flaxcls.analysis.pictures import data_url, enlarged, in_colours
from flaxcls.analysis.report.charts import Spec, confusion, evenly_spaced
from flaxcls.errors import InputError

SUFFIX = ".evaluation"
SAMPLES, COLUMNS, PICTURE = 24, 6, 112


def write_events(evaluation: Evaluation, directory: str | Path) -> Path:
    """Writes an event file with pictures for TensorBoard, replaces an earlier one, and returns its path.

    "confusion_matrix" shows shares of each true class. "samples" shows examples spread evenly over the split, and
    "mistakes" the worst ones. Each image has its predicted class and, if that is wrong, its true class.

    Raises InputError if the file cannot be written.
    """
    directory = Path(directory)
    spread = evenly_spaced(len(evaluation.labels), SAMPLES)
    pictures = {"confusion_matrix": _draw({**_on_white(confusion(evaluation)), "width": 600})}
    for tag, chosen in (("samples", spread), ("mistakes", worst(evaluation, SAMPLES))):
        if chosen:
            pictures[tag] = _draw(_gallery(evaluation, chosen))
    try:
        for old in directory.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        writer = EventsWriter(str(directory / "events"), SUFFIX)
        for tag, picture in pictures.items():
            summary = image(tag, picture, dataformats="HWC")
            writer.write_event(Event(wall_time=time.time(), step=evaluation.metrics["step"], summary=summary))
        writer.close()
    except OSError as error:
        raise InputError(f"events cannot be written to {directory}: {error.strerror or error}.") from error
    return next(directory.glob(f"events.out.tfevents.*{SUFFIX}"))


def _on_white(spec: Spec) -> Spec:
    """Returns a chart of the report on white, with fixed colours: there is no text around it to take colours from."""
    plain: Spec = json.loads(json.dumps(spec).replace("currentColor", "#222"))
    plain["params"] = [{**param, "value": "rates"} for param in plain["params"]]
    return {**plain, "config": {**plain["config"], "background": "white"}}


def _gallery(evaluation: Evaluation, chosen: list[int]) -> Spec:
    names = evaluation.class_names
    rows = []
    for place, index in enumerate(chosen):
        predicted, label = names[evaluation.predicted[index]], names[evaluation.labels[index]]
        picture = data_url(enlarged(in_colours(evaluation.images[index]), PICTURE))
        right = predicted == label
        text = predicted if right else f"{predicted}, not {label}"
        rows.append({"x": place % COLUMNS, "y": place // COLUMNS, "picture": picture, "text": text, "right": right})
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.5, COLUMNS - 0.5])),
        y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[rows[-1]["y"] + 0.5, -0.5])),
    )
    pictures = base.mark_image(width=PICTURE, height=PICTURE, dy=-8).encode(url="picture:N")
    texts = base.mark_text(dy=62, limit=136).encode(
        text="text:N", color=alt.condition("datum.right", alt.value("#222"), alt.value("#c0392b"))
    )
    spec: Spec = (
        alt.layer(pictures, texts)
        .properties(width=144 * COLUMNS, height=152 * (rows[-1]["y"] + 1), background="white")
        .configure_view(stroke=None)
        .to_dict()
    )
    return spec


def _draw(spec: Spec) -> np.ndarray:
    """Returns the picture of a chart, u8[h w 3]."""
    return np.asarray(Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec))).convert("RGB"))
