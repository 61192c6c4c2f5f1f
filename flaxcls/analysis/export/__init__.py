"""Exports of a classifier: one file that turns the bytes of images into calibrated probabilities."""

from flaxcls.analysis.export.files import DESCRIPTION, ONNX, STABLEHLO, add_onnx, check_folder, export_run
from flaxcls.analysis.export.serving import WeightType
from flaxcls.analysis.export.stablehlo import to_stablehlo

__all__ = ["DESCRIPTION", "ONNX", "STABLEHLO", "WeightType", "add_onnx", "check_folder", "export_run", "to_stablehlo"]
