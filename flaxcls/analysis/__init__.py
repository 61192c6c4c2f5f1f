"""Tools to use, test and explain a trained model."""

from flaxcls.analysis.classifier import Classifier, Predictions
from flaxcls.analysis.loading import load_run

__all__ = ["Classifier", "Predictions", "load_run"]
