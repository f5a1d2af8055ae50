"""The training loop as Lightning sees it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Float64
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from configs import UserError
from configs.errors import describe_error
from degradations.randomness import BatchStream, key
from degradations.shapes import expand_like
from diffusion.data.base import ImageSet
from diffusion.data.loader import Batch, Batches
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.objectives.base import Losses, Rule
from diffusion.runs import checkpoint
from diffusion.spaces.latent import choose_mirrored
from diffusion.training.ema import EMA
from diffusion.training.guard import Skips, clip_gradients, hold
from models.context import Condition

BINS = 5
"""Equal parts of (0, 1] for which the loss is logged apart."""
LOGGED = tuple(f"loss_t{k / BINS:.1f}-{(k + 1) / BINS:.1f}" for k in range(BINS))
"""The columns of the log that every training has; what the criterion logs comes after them."""


class Training(L.LightningModule):
    """Optimizes a :class:`diffusion.model.Model` and keeps the average of its weights.

    Steps are counted here, over the whole life of the run; Lightning counts those of this process. Everything random
    is keyed by this count, so a run that was killed goes on as if nothing had happened. So does its log: ``tally``
    holds the sum of the losses since the last row, and their number, by time and over all ranks.

    A step whose loss or gradient is not a finite number changes nothing but the count of such steps, ``skips``, which
    is read by :meth:`review`. That is decided on the device, from numbers that all ranks have, and waits for nothing.

    :param model: what is trained
    :param images: the training split
    :param flip: mirror half of the images
    :param optimizer: algorithm and learning rate
    :param fingerprint: of the data, noted in the checkpoints
    :param batch: images per optimizer step
    :param accumulate: parts in which the batch is computed
    :param max_steps: optimizer steps of the whole run
    :param seed: seed of the run
    :param decay: of the weights' average
    :ivar watch: is told by :meth:`review` of steps that were left out: the first, and the most in a row
    """

    def __init__(self, model: Model, images: ImageSet, flip: bool, optimizer: Rule, *, fingerprint: str, batch: int,
                 accumulate: int, max_steps: int, seed: int, decay: float):
        super().__init__()
        self.fingerprint = fingerprint
        self.model, self.images, self.flip, self.optimization = model, images, flip, optimizer
        self.batch, self.accumulate, self.max_steps, self.seed = batch, accumulate, max_steps, seed
        self.weights = model.weights
        self.ema = EMA(model.weights, decay, model.weights.fitted)
        self.step = 0
        self.logged = LOGGED
        self.tally = torch.zeros(2, len(LOGGED), dtype=torch.float64)
        self.skips = Skips()
        self.watch: Callable[[int, int], None] | None = None
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._changing: list[Tensor] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._critics: dict[str, torch.optim.Optimizer] = {}
        self._optimizer_states: dict[str, Any] | None = None
        self.sharding: Any = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()}
        held = {**self.weights.split(self.ema.model.state_dict()), "optimizers": optimizers}
        return {**(self.sharding.gather(held) if self.sharding else held),
                "config": self.model.config, "data": self.fingerprint, "logged": list(self.logged),
                "tally": self.tally, "skips": self.skips.since}

    def restore(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        :raises UserError: if it does not fit
        """
        with self._explain(content["step"]):
            self.weights.load_state_dict(checkpoint.merge_state(content, "raw"))
            self.ema.model.load_state_dict(checkpoint.merge_state(content, "ema"))
            self.step, self._optimizer_states = content["step"], dict(content["optimizers"])
            self.logged, self.tally = tuple(map(str, content["logged"])), content["tally"].double()
            if self.tally.shape != (2, len(self.logged)):
                raise ValueError(f"a tally of {tuple(self.tally.shape)} for {len(self.logged)} numbers")
            if "skips" in content:  # not in those of earlier versions
                self.skips.since = content["skips"].long().view(2)
                self.skips.forget()

    @contextmanager
    def _explain(self, step: int) -> Iterator[None]:
        """Says in words what is wrong with the checkpoint of a step."""
        try:
            yield
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise UserError(f"the checkpoint of step {step} does not fit this training: {describe_error(error)}",
                            "one that this version of train.py wrote",
                            "remove it: an earlier one is used; or run.name=ANOTHER_NAME to begin anew") from error

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        """The model with the average of its weights, not in training; what was there comes back afterwards.

        Of a sharded training it is another model, for which all processes give their shards: all of them have to ask.
        """
        weights = self.weights
        if self.sharding:
            state = self.sharding.gather(self.ema.model.state_dict())
            model = self.model
            if self.global_rank == 0:  # the others show nothing
                model = Model(model.config).to(self.device)
                model.weights.load_state_dict(state)
            yield model
            return
        current = {name: value.clone() for name, value in weights.state_dict().items()}
        weights.load_state_dict(self.ema.model.state_dict())
        weights.eval()
        try:
            yield self.model
        finally:
            weights.load_state_dict(current)
            weights.train()

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and self.sharding is None:
            from diffusion.training import sharding

            self.sharding = sharding
            sharding.shard_network(self.weights.net, self.trainer.strategy.device_mesh["data_parallel"])
            sharding.shard_average(self.ema.model, self.weights)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        networks, taken = self.model.objective.networks, set()
        for name, rule in self.model.objective.optimizers.items():
            parameters = [p for p in networks[name].parameters() if p.requires_grad]
            taken |= set(map(id, parameters))
            self._critics[name] = rule.build(parameters)
        return self.optimization.build(p for p in self.weights.parameters() if p.requires_grad and id(p) not in taken)

    def train_dataloader(self) -> Batches:
        # Endless and positioned by our own step: Lightning's way of resuming would start the epoch again.
        return Batches(self.images.to(self.device), self.seed, self.batch, self.flip, self.step, self.global_rank,
                       self.trainer.world_size, self.accumulate)

    def on_train_start(self) -> None:
        fitted = {id(value) for part in self.weights.fitted for value in part.buffers()}
        self._changing = [value for value in self.weights.buffers() if id(value) not in fitted]
        with self._explain(self.step):
            states = self._optimizer_states
            for name, optimizer in () if states is None else self._optimizers().items():
                state = (states or {})[name]
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                optimizer.load_state_dict(self.sharding.place_states(state, parameters) if self.sharding else state)
                for parameter, state in optimizer.state.items():
                    odd = [key for key, value in state.items() if isinstance(value, Tensor) and value.dim()
                           and value.shape != parameter.shape]
                    if odd:
                        raise ValueError(f"{odd[0]} of another shape than the weights")
                    # A machine that lays weights out in another way has written it.
                    optimizer.state[parameter] = {
                        key: torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                        if isinstance(value, Tensor) and value.dim() and not self.sharding else value
                        for key, value in state.items()}
        self._optimizer_states = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The global generator is the networks' dropout: the one draw that depends on the rank.
        torch.manual_seed(key(self.seed, "dropout", batch.step, batch.micro, self.global_rank) % 2**63)
        rng = BatchStream(self.seed, batch.step, batch.rows, batch.total, self.device)
        images, encoder = to_float(batch.images.to(self.device)), self.weights.encoder
        condition = {name: raw.to(self.device) for name, raw in batch.condition.items()}
        cached = condition.pop("space.moments", None)
        condition = self.mirror(condition, batch)
        if self.model.augment is not None:
            images, condition["augment"] = self.model.augment(images, self.seed, batch.positions)
        condition = encoder.derive(images, condition, rng)
        if not self._parts:
            self._before = [(value, value.clone()) for value in self._changing]
        if cached is not None:
            cached = choose_mirrored(cached, torch.from_numpy(batch.mirrored))
        x0 = self.model.space.draw(images, rng, cached)
        losses = self.model.objective(self.model.evaluator, encoder, self.model.degradation, x0, condition, rng)
        batch_losses = torch.stack([losses.t.float(), losses.values.detach().float()])
        self._parts.append((self._add(losses), batch_losses))
        return sum((own.mean() for own in losses.critics.values()), losses.values.mean())

    def mirror(self, condition: Condition, batch: Batch) -> Condition:
        """The condition as it is of images of which some are mirrored."""
        if not self.flip:
            return condition
        rows, side = torch.from_numpy(batch.mirrored).to(self.device), self.model.image_shape[-1]
        mirrored = self.model.weights.encoder.mirror(condition, side)
        return condition | {name: torch.where(expand_like(rows, raw), raw, condition[name])
                            for name, raw in mirrored.items() if raw is not condition[name]}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any,
                       optimizer_closure: Callable[[], Any] | None = None) -> None:
        # Numbers that all processes have, such as the flag of a step to leave out, meet sharded ones.
        with self.sharding.implicit_replication() if self.sharding else nullcontext():
            self._step(optimizer, optimizer_closure)

    def _step(self, optimizer: Any, optimizer_closure: Callable[[], Any] | None) -> None:
        for name, each in self._optimizers().items():
            for group in each.param_groups:
                group["lr"] = self._rules[name].rate(self.step, self.max_steps)
        bad = torch.tensor(False)

        def closure() -> Any:
            nonlocal bad
            result = optimizer_closure() if optimizer_closure else None
            bad = self._judge()
            return result

        optimizer.step(closure=closure)
        for critic in self._critics.values():
            critic.step()
            critic.zero_grad()
        with torch.no_grad():
            rng = BatchStream(self.seed, self.step, slice(0, self.batch), self.batch, self.device)
            self.model.objective.finish_step(self.model.evaluator, rng, self._sum_over_ranks)
            for value, before in self._before:
                value.copy_(torch.where(bad, before, value))
        self.step += 1
        self.ema.update(self.weights, self.step, bad)

    def _judge(self) -> Bool[Tensor, ""]:
        """After the backward pass: whether the step has to be left out; counts it, or its losses."""
        optimizers = self._optimizers()
        if self.sharding:
            self.sharding.average_gradients(self.weights.parameters())
        norms = [clip_gradients(each, self._rules[name].clip) for name, each in optimizers.items()]
        ours = torch.stack([part for part, _ in self._parts]).sum(0)
        # Over the ranks at every step, so that the one that saves knows the whole. Gathering does not wait for the GPU.
        sums = self._sum_over_ranks(ours)
        critics = self.model.objective.networks
        trained = [place for place, name in enumerate(self.logged) if place < BINS or name in critics]
        bad = ~torch.stack([sums[0, trained].sum(), *(norm.to(sums) for norm in norms)]).isfinite().all()
        hold(optimizers.values(), bad)
        self.tally = torch.where(bad, self.tally.to(bad.device), self.tally.to(bad.device) + sums)
        self.skips.add(bad, self.step + 1, torch.cat([batch for _, batch in self._parts], dim=1))
        self._parts.clear()
        return bad

    def _sum_over_ranks(self, ours: Tensor) -> Tensor:
        return torch.as_tensor(self.all_gather(ours)).view(-1, *ours.shape).sum(0)

    def review(self) -> int:
        """How many steps have been left out since the last row of the log. ``watch`` is told, on every rank, if there
        are any that it does not know of. The host waits for the device: only for a row or a checkpoint."""
        first, longest, since = self.skips.read()
        if first >= 0 and self.watch is not None:
            self.watch(first, longest)
        self.skips.forget()
        return since

    def gather_batch(self) -> Float[Tensor, "2 batch"]:
        """Times and losses of the whole batch in the first step that was left out, in the order of the positions."""
        ours = self.skips.batch
        parts = torch.as_tensor(self.all_gather(ours)).view(-1, 2, self.accumulate, ours.shape[1] // self.accumulate)
        return parts.permute(1, 2, 0, 3).reshape(2, -1)

    @property
    def _rules(self) -> dict[str, Rule]:
        return {"net": self.optimization, **self.model.objective.optimizers}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return {"net": optimizer, **self._critics}

    def _add(self, losses: Losses) -> Float64[Tensor, "2 columns"]:
        more = {**losses.logs, **losses.critics}
        if self.logged == LOGGED and more:
            self.logged = (*LOGGED, *more)
            self.tally = torch.cat([self.tally, self.tally.new_zeros(2, len(more))], dim=1)
        if self.logged != (*LOGGED, *more):
            before, now = (', '.join(names) or "nothing" for names in (self.logged[BINS:], more))
            raise ValueError(f"the criterion has logged {before} so far, and now {now}: the names must be the same for "
                             "every batch")
        rest = [torch.stack([value.detach().double().sum(), value.new_tensor(len(value), dtype=torch.float64)])
                for value in more.values()]
        return torch.cat([tally(losses), *(column[:, None] for column in rest)], dim=1)


def tally(losses: Losses) -> Float64[Tensor, "2 bins"]:
    """Sum and number of the losses by time, in the parts ``(k / BINS, (k + 1) / BINS]``: levels divide evenly."""
    place = ((losses.t * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    values = torch.stack([losses.values.detach().double(), torch.ones_like(losses.t, dtype=torch.float64)])
    return values.new_zeros(2, BINS).index_add(1, place, values)
