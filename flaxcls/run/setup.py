"""The fixed parts of a run: what is trained, on what, in which layout, and the compiled programs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, Sharding

from flaxcls.augment import make_operations, make_transform, with_views
from flaxcls.config import AugmentConfig, Config
from flaxcls.data import Dataset, channel_statistics
from flaxcls.data.batches import BatchMaker
from flaxcls.data.images import Images
from flaxcls.finite import all_finite
from flaxcls.losses import make_evaluation_loss, make_loss, make_regularizer
from flaxcls.metrics import MetricSums
from flaxcls.models import build_model
from flaxcls.optim import make_optimizer, make_optimizer_metrics, make_schedule
from flaxcls.run.checks import check_data, check_devices, check_model, check_schedule, least_area, trace
from flaxcls.run.dispatch import make_dispatch
from flaxcls.run.loader import Loader
from flaxcls.run.microbatch import choose_microbatches
from flaxcls.run.plan import Plan, make_plan
from flaxcls.run.program import describe_program
from flaxcls.sharding import batch_sharding, local_rows, make_mesh, on_devices, replicated, state_sharding
from flaxcls.state import TrainState, create_state
from flaxcls.step import eval_step, train_step
from flaxcls.types import Batch, EvalParams, Transform


@dataclass(frozen=True)
class Setup:
    """The fixed parts of a run.

    mean, std: f64[c] of the training images.
    transform: (key or None, batch) -> batch, applied to images before the model.
    mesh: the devices.
    loader: the training batches.
    eval_batch_size: examples of an evaluation step, at most.
    abstract_state: shapes, types and layout of the state; a checkpoint is restored into it.
    create: key -> the state before the first step.
    train: (state, batches, key, frozen=()) -> (state, (metrics f32[k], optimizer metrics f32[k])), a dispatch of k
      steps, which reuses the buffers of the state. `frozen` holds the globs of parameters that do not change.
    evaluate: (state, batch) -> sums.
    finite: state -> bool[], True if every number that is trained or evaluated is finite.
    microbatches: the number of parts of a batch: `optim.accumulate`, or as many as suit the caches.
    program: what can be read of the caller's own model and optimizer, from `describe_program`; {} for the package's.
    """

    dataset: Dataset
    plan: Plan
    model: nn.Module
    mean: np.ndarray
    std: np.ndarray
    transform: Transform
    mesh: Mesh
    loader: Loader
    eval_batch_size: int
    abstract_state: TrainState
    create: Callable[[jax.Array], TrainState]
    train: jax.stages.Wrapped
    evaluate: Callable[[TrainState, Any], MetricSums]
    finite: Callable[[TrainState], jax.Array]
    microbatches: int
    program: dict[str, str]


def make_setup(
    config: Config,
    dataset: Dataset,
    model: nn.Module | None,
    tx: optax.GradientTransformation | None,
    eval_params: EvalParams | None = None,
) -> Setup:
    """Returns the parts of the run. Nothing is trained, compiled or written.

    Raises:
      InputError: if data, model, optimizer, batch and devices do not fit together.
    """
    check_devices(config.mesh, jax.device_count())
    mesh = make_mesh(config.mesh.fsdp)
    check_data(config, dataset, mesh.size)
    plan = make_plan(
        config.loop,
        examples=len(dataset.train.labels),
        warmup_epochs=config.optim.warmup_epochs,
        skip=config.stop.skip,
        freeze=config.optim.freeze,
    )
    check_schedule(config.optim, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    schedule = make_schedule(config.optim, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    mean, std = dataset.statistics or channel_statistics(dataset.train.images, _sample(dataset.train.images))
    dataset = _brought_to_size(dataset, config.augment)
    transform = transform_of(config.augment, dataset, mean, std)

    model_is_ours, tx_is_ours = model is None, tx is None
    model = model or build_model(config.model, len(dataset.class_names))
    tx = tx or make_optimizer(config.optim, schedule, steps_per_epoch=plan.steps_per_epoch)
    averages = config.optim.ema_decay is not None or eval_params is not None
    create = partial(create_state, model=model, tx=tx, image_shape=dataset.image_shape, ema=averages)
    shapes = trace(partial(jax.eval_shape, create), jax.random.key(0))
    check_model(config.optim, model, shapes, dataset, batch_size=plan.batch_size)
    microbatches = config.optim.accumulate
    if microbatches == 1 and model_is_ours:
        microbatches = choose_microbatches(
            model,
            shapes,
            dataset.image_shape,
            batch_size=plan.batch_size,
            steps_per_dispatch=config.loop.steps_per_dispatch,
        )

    step = partial(
        train_step,
        model=model,
        tx=tx,
        loss_fn=make_loss(config.loss, np.bincount(dataset.train.labels, minlength=len(dataset.class_names))),
        regularizer=make_regularizer(config.loss),
        transform=transform,
        accumulate=microbatches,
        ema_decay=config.optim.ema_decay,
        eval_params=eval_params,
    )
    batch = _abstract_batch(dataset, plan.batch_size, mirrored=config.augment.alternating_flip)
    program = {} if model_is_ours and tx_is_ours else describe_program(model, create, step, shapes, batch)
    evaluation = partial(
        eval_step,
        model=with_views(model, config.augment),
        loss_fn=make_evaluation_loss(config.loss),
        transform=transform,
    )
    whole, layout = replicated(mesh), state_sharding(shapes, mesh)
    gathered: dict[str, Any] = {} if config.mesh.fsdp == 1 else {
        "gather": partial(_gather_params, whole=whole),
        "scatter": partial(jax.lax.with_sharding_constraint, shardings=layout),
    }  # fmt: skip
    options = _compiler_options(config.loop.deterministic)
    return Setup(
        dataset=dataset,
        plan=plan,
        model=model,
        mean=mean,
        std=std,
        transform=transform,
        mesh=mesh,
        loader=_make_loader(config, dataset, mesh),
        eval_batch_size=config.loop.eval_batch_size,
        abstract_state=jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout
        ),
        create=_make_create(config.model.init_images, dataset, create, transform, whole, layout),
        train=jax.jit(
            make_dispatch(
                step,
                make_optimizer_metrics(config.optim, schedule) if tx_is_ours else lambda state, frozen: {},
                skips_not_finite=config.loop.on_nan == "skip",
                picked_layout=batch_sharding(mesh) if config.data.on_device else None,
                **gathered,
            ),
            static_argnames="frozen",
            donate_argnums=0,
            out_shardings=(layout, whole),
            compiler_options=options,
        ),
        evaluate=jax.jit(
            evaluation if config.mesh.fsdp == 1 else _gather_for(evaluation, whole), compiler_options=options
        ),
        finite=jax.jit(lambda state: all_finite((state.params, state.eval_variables))),
        microbatches=microbatches,
        program=program,
    )


def _brought_to_size(dataset: Dataset, config: AugmentConfig) -> Dataset:
    """Returns the data set with arrays in place of images in memory that need no more than the same size every time."""
    if least_area(config, dataset.train.images) is not None:
        return dataset
    parts: Any = {
        part: split._replace(images=split.images[:])
        for part, split in dataset.splits.items()
        if isinstance(split.images, Images) and split.images.in_memory and split.images.complete
    }
    return replace(dataset, **parts) if parts else dataset


def _abstract_batch(dataset: Dataset, size: int, *, mirrored: bool) -> Batch:
    """Returns the shapes and types of a training batch before its transform."""
    images = jax.ShapeDtypeStruct((size, *dataset.image_shape), dataset.train.images.dtype)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    batch |= {"mirrored": jax.ShapeDtypeStruct((size,), jnp.bool_)} if mirrored else {}
    return cast(Batch, batch)


def _make_loader(config: Config, dataset: Dataset, mesh: Mesh) -> Loader:
    maker = BatchMaker(
        split=dataset.train,
        seed=config.seed,
        batch_size=config.loop.batch_size,
        rows=local_rows(batch_sharding(mesh), config.loop.batch_size),
        balanced=config.data.sampling == "balanced",
        least_area=least_area(config.augment, dataset.train.images),
        alternating_flip=config.augment.alternating_flip,
    )
    return Loader(maker, mesh, on_device=config.data.on_device, workers=config.data.workers)


def _gather_params(state: TrainState, whole: Sharding) -> TrainState:
    return replace(state, params=jax.lax.with_sharding_constraint(state.params, whole))


def _gather_for(evaluation: Callable[..., Any], whole: Sharding) -> Callable[..., Any]:
    """Returns `evaluation` for a state of any layout, which is gathered first."""
    return lambda state, batch: evaluation(jax.lax.with_sharding_constraint(state, whole), batch)


def _make_create(
    init_images: int,
    dataset: Dataset,
    create: Callable[..., TrainState],
    transform: Transform,
    whole: Sharding,
    layout: Any,
) -> Callable[[jax.Array], TrainState]:
    """Returns key -> state; the images that the model is initialised on are not constants of the program."""
    images = dataset.train.images
    if init_images == 0:
        return jax.jit(create, out_shardings=layout)

    def on_images(key: jax.Array, images: jax.Array) -> TrainState:
        batch = transform(None, {"image": images, "label": jnp.zeros(len(images), jnp.int32)})
        return create(key, images=batch["image"])

    # evenly spread, because the images of a folder are sorted by class
    chosen = np.linspace(0, len(images) - 1, init_images).round().astype(int)
    created = jax.jit(on_images, out_shardings=layout)
    return lambda key: created(key, on_devices(images[chosen], whole))


def _sample(images: np.ndarray | Images) -> np.ndarray | None:
    """Returns the indices of the images to take statistics of: 4,096 evenly spread ones of several sizes; None: all."""
    if not isinstance(images, Images) or images.whole or len(images) <= 4096:
        return None
    return np.linspace(0, len(images) - 1, 4096).round().astype(int)


def _compiler_options(deterministic: bool) -> dict[str, bool] | None:
    """Returns the options with which XLA gives the same bits in each process; on CPU it needs none."""
    return {"xla_gpu_deterministic_ops": True} if deterministic and jax.default_backend() == "gpu" else None


def transform_of(config: AugmentConfig, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> Transform:
    """Returns the transform of a run. mean, std: f64[c] of the training images."""
    blank = mean * (255 if dataset.train.images.dtype == np.uint8 else 1) if config.normalize else 0.0
    height, width, _ = dataset.image_shape
    if least_area(config, dataset.train.images) is not None:
        config = replace(config, resized_crop=None)  # the batches are such crops already
    return make_transform(
        mean=mean if config.normalize else None,
        std=std if config.normalize else None,
        random_flips=config.flip,
        crop_padding=config.crop_padding,
        crop_fill=config.crop_fill,
        operations=make_operations(
            config, image_size=(height, width), num_classes=len(dataset.class_names), blank=blank
        ),
    )
