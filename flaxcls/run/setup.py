"""The fixed parts of a run: what is trained, on what, how it is laid out, and the compiled programs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, Sharding

from flaxcls.augment import make_steps, make_transform, with_views
from flaxcls.config import AugmentConfig, Config
from flaxcls.data import Dataset, channel_statistics
from flaxcls.data.images import Images
from flaxcls.data.workers import BatchMaker
from flaxcls.metrics import MetricSums
from flaxcls.models import build_model
from flaxcls.optim import make_optimizer, make_schedule
from flaxcls.run.checks import check_data, check_devices, check_model, check_schedule
from flaxcls.run.dispatch import Picked, make_dispatch, placed_split
from flaxcls.run.objective import evaluation_loss, logged_values, regularizer, training_loss
from flaxcls.run.parts import cache_parts
from flaxcls.run.plan import Plan
from flaxcls.run.utilization import Work, peak_flops, training_flops
from flaxcls.sharding import (
    batch_sharding,
    batches_sharding,
    local_rows,
    make_mesh,
    on_devices,
    replicated,
    state_sharding,
)
from flaxcls.state import TrainState, create_state
from flaxcls.step import all_finite, eval_step, train_step
from flaxcls.types import Batch, Transform

# of an image that is cut out of one of another size, where augment.resized_crop does not say
LEAST_AREA = 0.35


@dataclass(frozen=True)
class Setup:
    """A run's fixed parts.

    mesh: of the devices.
    abstract_state: shapes, types and layout of the state, which is what a checkpoint is restored into.
    create: key -> the state before the first step.
    train: (state, batches, key, frozen=()) -> (state, (metrics f32[k], extra f32[k])), a dispatch of k steps that takes
      the state's buffers over; extra is what is logged of a step alone: learning rate and decay. `frozen` are the globs
      of parameters that stay as they are.
    evaluate: (state, batch) -> sums.
    finite: state -> bool[], whether every number in what is evaluated and trained is finite.
    transform: (key or None, batch) -> batch, what happens to images before the model.
    parts: into how many a batch is taken: `optim.accumulate`, or as many as suit the caches.
    mean, std: f64[c] of the training images.
    """

    config: Config
    dataset: Dataset
    plan: Plan
    model: nn.Module
    mean: np.ndarray
    std: np.ndarray
    mesh: Mesh
    abstract_state: TrainState
    batch_sharding: Sharding
    batches_sharding: Sharding
    create: Callable[[jax.Array], TrainState]
    train: jax.stages.Wrapped
    evaluate: Callable[[TrainState, Any], MetricSums]
    finite: Callable[[TrainState], jax.Array]
    transform: Transform
    parts: int

    @cached_property
    def work(self) -> Work:
        """What a step asks of the devices. What a CPU can do is measured at first, so before it is busy."""
        flops = training_flops(self.model, self.dataset.image_shape)
        return Work(self.config.loop.batch_size, flops, peak_flops())

    @cached_property
    def resident(self) -> Batch:
        """The training split on the devices, put there when it is first asked for."""
        return placed_split(self.dataset.train, replicated(self.mesh))

    def batch_maker(self, rollbacks: int) -> BatchMaker:
        """Returns what makes the batches of the endless stream, which is another one after each rollback.

        A process makes the rows of its own devices alone.
        """
        return BatchMaker(
            split=self.dataset.train,
            seed=self.config.seed + rollbacks * 2**32,
            batch_size=self.config.loop.batch_size,
            rows=local_rows(self.batch_sharding, self.config.loop.batch_size),
            balanced=self.config.data.sampling == "balanced",
            least_area=self.config.augment.resized_crop or LEAST_AREA,
            alternating_flip=self.config.augment.alternating_flip,
        )

    def placed(self, made: Sequence[dict[str, np.ndarray]]) -> Any:
        """Returns batches, as the maker made them, on the devices: arrays [k b ...].

        Where the only device is the CPU they stay NumPy's, which a call takes in half the time.
        """
        arrays = {name: np.stack([batch[name] for batch in made]) for name in made[0]}
        if self.batches_sharding.num_devices == 1 and jax.default_backend() == "cpu":
            return arrays
        return {name: self._placed(array) for name, array in arrays.items()}

    def _placed(self, arrays: np.ndarray) -> jax.Array:
        """Returns [k b ...] on the devices, of which this process has its rows."""
        size = self.config.loop.batch_size
        first = local_rows(self.batch_sharding, size).start

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(size)
            return arrays[index[0], start - first : stop - first]

        shape = (len(arrays), size, *arrays.shape[2:])
        return jax.make_array_from_callback(shape, self.batches_sharding, part)

    def batches(self, start: int, end: int, *, rollbacks: int = 0) -> Any:
        """Returns batches `start` up to `end`, from 0, for `train`: arrays [k b ...] on the devices, or `Picked`."""
        make = self.batch_maker(rollbacks)
        if not self.config.data.on_device:
            return self.placed([*map(make, range(start, end))])
        return Picked(split=self.resident, chosen=self.placed([*map(make.chosen, range(start, end))]))

    def eval_batch_size(self, examples: int) -> int:
        """Returns a batch size for so many examples that the devices share evenly and that is no larger than needed."""
        devices = self.batch_sharding.num_devices
        return -(-min(self.config.loop.eval_batch_size, examples) // devices) * devices


def make_setup(
    config: Config, dataset: Dataset, model: nn.Module | None, tx: optax.GradientTransformation | None
) -> Setup:
    """Returns the parts of the run. Nothing is trained, compiled or written.

    Raises:
      InputError: if data, model, optimizer, batch and devices do not fit together.
    """
    check_devices(config.mesh, jax.device_count())
    mesh = make_mesh(config.mesh.fsdp)
    check_data(config, dataset, mesh.size)
    plan = Plan.make(config, len(dataset.train.labels))
    check_schedule(config.optim, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    own_model = model is None
    model = model or build_model(config.model, len(dataset.class_names))
    schedule = make_schedule(config.optim, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    mean, std = channel_statistics(_sample(dataset.train.images))
    transform = _transform(config.augment, dataset, mean, std)
    ours = tx is None
    tx = tx or make_optimizer(config.optim, schedule, steps_per_epoch=plan.steps_per_epoch)
    create = partial(
        create_state, model=model, tx=tx, image_shape=dataset.image_shape, ema=config.optim.ema_decay is not None
    )
    shapes = jax.eval_shape(create, jax.random.key(0))
    check_model(config, model, shapes, dataset)
    parts = config.optim.accumulate
    if parts == 1 and own_model:
        parts = cache_parts(config, model, shapes, dataset.image_shape)
    whole, layout = replicated(mesh), state_sharding(shapes, mesh)
    step: Callable[..., Any] = partial(
        train_step,
        model=model,
        tx=tx,
        loss_fn=training_loss(config.loss, dataset),
        regularizer=regularizer(config.loss),
        transform=transform,
        accumulate=parts,
        ema_decay=config.optim.ema_decay,
    )
    evaluation: Callable[..., Any] = partial(
        eval_step, model=with_views(model, config.augment), loss_fn=evaluation_loss(config.loss), transform=transform
    )
    if config.mesh.fsdp > 1:
        step, evaluation = _gathering(step, whole, layout), _gathered(evaluation, whole)
    logged = logged_values(config, schedule) if ours else lambda state, frozen: {}
    options = _compiler_options(config.loop.deterministic)
    return Setup(
        config=config,
        dataset=dataset,
        plan=plan,
        model=model,
        mean=mean,
        std=std,
        mesh=mesh,
        abstract_state=jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout
        ),
        batch_sharding=batch_sharding(mesh),
        batches_sharding=batches_sharding(mesh),
        create=_create(config, dataset, create, transform, whole, layout),
        train=jax.jit(
            make_dispatch(config, step, logged, batch_sharding(mesh)),
            static_argnames="frozen",
            donate_argnums=0,
            out_shardings=(layout, whole),
            compiler_options=options,
        ),
        evaluate=jax.jit(evaluation, compiler_options=options),
        finite=jax.jit(lambda state: all_finite((state.params, state.eval_variables))),
        transform=transform,
        parts=parts,
    )


def _gathering(step: Callable[..., Any], whole: Sharding, layout: Any) -> Callable[..., Any]:
    """Returns `step` for a state of this layout: it gathers the parameters, and leaves each device its part again."""

    def gathered(state: TrainState, *args: Any, **options: Any) -> Any:
        params = jax.lax.with_sharding_constraint(state.params, whole)
        new, metrics = step(replace(state, params=params), *args, **options)
        return jax.lax.with_sharding_constraint(new, layout), metrics

    return gathered


def _gathered(evaluation: Callable[..., Any], whole: Sharding) -> Callable[..., Any]:
    """Returns `evaluation` for a state of any layout, which it gathers."""
    return lambda state, batch: evaluation(jax.lax.with_sharding_constraint(state, whole), batch)


def _create(
    config: Config,
    dataset: Dataset,
    create: Callable[..., TrainState],
    transform: Transform,
    whole: Sharding,
    layout: Any,
) -> Callable[[jax.Array], TrainState]:
    """Returns key -> state; the images that the model is initialised on are no constant of the program."""
    count, images = config.model.init_images, dataset.train.images
    if count == 0:
        return jax.jit(create, out_shardings=layout)

    def on_images(key: jax.Array, images: jax.Array) -> TrainState:
        batch = transform(None, {"image": images, "label": jnp.zeros(len(images), jnp.int32)})
        return create(key, images=batch["image"])

    # evenly, as a folder's images come class by class
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    created = jax.jit(on_images, out_shardings=layout)
    return lambda key: created(key, on_devices(images[chosen], whole))


def _sample(images: np.ndarray | Images) -> np.ndarray | Images:
    """Returns the images that stand for all where they are of several sizes: 4,096, evenly from the first on."""
    if not isinstance(images, Images) or images.whole or len(images) <= 4096:
        return images
    return images.take(np.linspace(0, len(images) - 1, 4096).round().astype(int))


def _compiler_options(deterministic: bool) -> dict[str, bool] | None:
    """Returns what makes XLA give the same bits in each process; on CPU it does so by itself."""
    return {"xla_gpu_deterministic_ops": True} if deterministic and jax.default_backend() == "gpu" else None


def _transform(config: AugmentConfig, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> Transform:
    blank = mean * (255 if dataset.train.images.dtype == np.uint8 else 1) if config.normalize else 0.0
    height, width, _ = dataset.image_shape
    if isinstance(dataset.train.images, Images) and not dataset.train.images.whole:
        config = replace(config, resized_crop=None)  # the batches are such crops already
    return make_transform(
        mean=mean if config.normalize else None,
        std=std if config.normalize else None,
        random_flips=config.flip,
        crop_padding=config.crop_padding,
        crop_fill=config.crop_fill,
        steps=make_steps(config, image_size=(height, width), num_classes=len(dataset.class_names), blank=blank),
    )
