"""Accuracy, recall, F1, the confusion matrix, ROC and AUC of a network that was trained on few digits.

Command:   python -m experiments.tutorial.metrics
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from experiments.tutorial.shared import Options, print_table, save, start, train
from flaxcls.augment import to_float
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, OptimConfig, StopConfig
from flaxcls.data import load_dataset
from flaxcls.models import build_model

CONFIG = Config(
    data=DataConfig(train_examples=100, test_fraction=0.4),  # few, so that there are mistakes to look at
    augment=AugmentConfig(normalize=False, crop_padding=0),
    model=ModelConfig(widths=(16, 32), dense=(64,), norm="none", dropout=0.0),
    optim=OptimConfig(learning_rate=1e-3, ema_decay=None),
    loop=LoopConfig(epochs=40, batch_size=20, eval_every=4),
    stop=StopConfig(skip=0.99),
)


def main(options: Options) -> None:
    """Trains, prints the table and draws the figure."""
    start(options)
    config = replace(CONFIG, loop=replace(CONFIG.loop, epochs=2)) if options.shortened else CONFIG
    dataset = load_dataset(config.data)
    result = train(config, dataset).result
    logits = build_model(config.model, 10).apply(
        result.state.eval_variables, to_float(jnp.asarray(dataset.test.images)), train=False
    )
    assert isinstance(logits, jax.Array)
    labels, scores = dataset.test.labels, np.asarray(jax.nn.softmax(logits), np.float64)
    scores /= scores.sum(axis=1, keepdims=True)  # to float64's precision, which scikit-learn checks
    predicted = scores.argmax(axis=1)

    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, zero_division=0)
    auc = [roc_auc_score(labels == digit, scores[:, digit]) for digit in range(10)]
    rows = [
        (str(digit), str(support[digit]), *(f"{column[digit]:.3f}" for column in (precision, recall, f1, auc)))
        for digit in range(10)
    ]
    means = (f"{np.mean(column):.3f}" for column in (precision, recall, f1, auc))
    print_table(("digit", "images", "precision", "recall", "F1", "AUC"), [*rows, ("mean", str(len(labels)), *means)])
    print(f"accuracy: {accuracy_score(labels, predicted):.3f}")

    figure, (matrix, roc) = plt.subplots(1, 2, figsize=(10, 4.6))
    ConfusionMatrixDisplay(confusion_matrix(labels, predicted)).plot(ax=matrix, cmap="Blues", colorbar=False)
    matrix.spines[:].set_visible(True)
    matrix.set(title="confusion matrix", xlabel="predicted digit", ylabel="true digit")
    worst = np.argsort(auc)[:3]
    for digit in sorted(worst):
        rates = roc_curve(labels == digit, scores[:, digit])
        roc.plot(rates[0], rates[1], label=f"{digit}: AUC {auc[digit]:.3f}")
    roc.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance: AUC 0.5")
    roc.set(title="ROC, the three hardest digits", xlabel="false positive rate", ylabel="true positive rate (recall)")
    roc.legend(loc="lower right")
    save(figure, options, "metrics.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
