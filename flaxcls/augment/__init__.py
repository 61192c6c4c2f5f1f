"""Transforms of image batches: pure functions that run on the device, as part of the step.

Random functions take a key first. Each of them draws numbers and calls a deterministic function of these, which can be
checked by hand. Images are [b h w c], unsigned bytes in 0..255 or floats, and the output has the type of the input.
Functions that depend on the largest value (colour, tones, policies) take floats in 0..1. Each function uses a single
image, or a small fixed group of images, so a batch that is split over devices stays where it is.
"""

from flaxcls.augment.affine import affine_matrices, random_affine, rotate, translate, warp
from flaxcls.augment.colour import (
    brightness,
    color_jitter,
    contrast,
    grayscale,
    hue,
    random_color_jitter,
    saturation,
    sharpness,
)
from flaxcls.augment.geometry import (
    crop,
    flip,
    random_crop,
    random_crop_boxes,
    random_flip,
    random_resized_crop,
    resized_crop,
)
from flaxcls.augment.mixing import (
    cutmix,
    cutout,
    mixup,
    random_cutmix,
    random_cutout,
    random_mix,
    random_mixup,
    soft_labels,
)
from flaxcls.augment.operations import Operation, make_operations, on_images
from flaxcls.augment.policies import OPS, apply_ops, rand_augment, trivial_augment
from flaxcls.augment.scaling import normalize, to_float
from flaxcls.augment.tones import autocontrast, equalize, posterize, solarize
from flaxcls.augment.transform import make_transform
from flaxcls.augment.views import AverageViews, average_views, make_views, with_views

__all__ = [
    "OPS",
    "AverageViews",
    "Operation",
    "affine_matrices",
    "apply_ops",
    "autocontrast",
    "average_views",
    "brightness",
    "color_jitter",
    "contrast",
    "crop",
    "cutmix",
    "cutout",
    "equalize",
    "flip",
    "grayscale",
    "hue",
    "make_operations",
    "make_transform",
    "make_views",
    "mixup",
    "normalize",
    "on_images",
    "posterize",
    "rand_augment",
    "random_affine",
    "random_color_jitter",
    "random_crop",
    "random_crop_boxes",
    "random_cutmix",
    "random_cutout",
    "random_flip",
    "random_mix",
    "random_mixup",
    "random_resized_crop",
    "resized_crop",
    "rotate",
    "saturation",
    "sharpness",
    "soft_labels",
    "solarize",
    "to_float",
    "translate",
    "trivial_augment",
    "warp",
    "with_views",
]
