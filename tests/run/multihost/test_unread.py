"""Images that two processes of one run cannot read: each keeps its own, and all are counted in the end."""

import json

import numpy as np
import pytest
from PIL import Image

from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig
from flaxcls.data import load_dataset
from tests.conftest import make_stripes
from tests.run.multihost.test_sync import finish, start

PROGRAM = """
import sys, time
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, index, workdir = sys.argv[1:4]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from flaxcls.run import examples, fit
from tests.run.multihost.test_unread import config

def append(*args, append=examples.append):
    time.sleep(3 * int(index))  # as on a slow disk
    append(*args)

examples.append = append
fit(config(workdir), workdir=workdir)
"""


def config(workdir):
    return Config(
        data=DataConfig(source="folder", dir=f"{workdir}-data", image_size=12, unreadable="replace"),
        augment=AugmentConfig(crop_padding=0),
        model=ModelConfig(widths=(4,), dense=()),
        loop=LoopConfig(epochs=1, batch_size=8),
    )


@pytest.mark.slow
def test_what_each_process_could_not_read_is_counted(tmp_path):
    run, data = tmp_path / "run", tmp_path / "run-data"
    images, labels = make_stripes(60)
    for number, (image, label) in enumerate(zip(images[..., 0], labels, strict=True)):
        folder = data / ("test" if number < 12 else "train") / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(image, np.ones((3, 3), np.uint8))).save(folder / f"{number}.jpg")
    test = load_dataset(config(run).data).test.names
    for name in (test[0], test[-1]):  # of the first process, and of the second
        (data / name).write_bytes((data / name).read_bytes()[:-60])
    codes, outputs = finish(start(run, program=PROGRAM))
    assert codes == [0, 0], outputs
    kept = [json.loads((run / name).read_text())["name"] for name in ("unread.jsonl", "unread-1.jsonl")]
    assert kept == [test[0], test[-1]]
    assert json.loads((run / "result.json").read_text())["unread"] == {"test": 2}
