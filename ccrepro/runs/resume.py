"""Drive `ccrepro.train.train`: log, save, stop on a signal, resume, gather over ranks.

A checkpoint holds weights, optimizer, epoch and step. That is all: the randomness of an epoch is a function of (seed,
epoch), so on a CPU a resumed run equals an uninterrupted one bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import CheckpointError, ConfigError, NumericalError
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runs.checkpoints import Checkpoints, Found
from ccrepro.runs.rehearsal import settle
from ccrepro.runs.weights import sha256
from ccrepro.runtime.device import cpu_name, threads, within_memory
from ccrepro.runtime.distributed import ALONE, Ranks
from ccrepro.runtime.signals import StopSignal
from ccrepro.train import Epoch, State, check_finite, resolve, start, train

Report = Callable[[Epoch, ContrastiveClusteringModel], None]
OTHERS = {"data_sha256": "other images", "start_sha256": "other weights to start from"}  # that tell runs apart


def fit(
    config: Config,
    data: ImageSet,
    report: Report = lambda epoch, model: None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
    model: ContrastiveClusteringModel | None = None,
) -> tuple[ContrastiveClusteringModel | None, list[Epoch]]:
    """Train from the newest of ``checkpoints``, or where there is none from the start, or from the given ``model``.

    Returns the model in evaluation mode, on its device, and the history, one dict per epoch; of a baseline (None, []).
    ``report(epoch, model)`` is called with each dict, and before the first step with epoch 0, which has no numbers. All
    ``ranks`` call this function, but only rank 0 passes ``report`` and ``checkpoints``.

    Raises `NumericalError` for a number that is not finite; `CheckpointError` for another run's checkpoints; `Stopped`
    after SIGTERM or Ctrl-C, once the step is saved; `ConfigError` where images, ranks or GPU memory do not suffice.
    """
    if config.baseline:
        return None, []
    run = {"config": config.model_dump(mode="json"), "data_sha256": data.sha256}
    run["start_sha256"] = sha256(model.state_dict()) if model else None
    found = ranks.share(checkpoints.load if checkpoints else lambda: None)
    if found:  # the precision is fixed when a run starts, whatever this machine would choose
        config = config.replace(precision=found[2]["machine"]["precision"])
    with threads(config.threads), within_memory(f"batch_size {config.batch_size}, image_size {config.image_size}"):
        state = start(resolve(config, ranks.size), data, model)
        if state.config.compile != "off":
            torch.compiler.reset()  # what others compiled takes memory, and counts against torch's limit of eight
            settle(state, data)
        state.network, state.gather, state.rows = ranks.wrap(state.model), ranks.gather, ranks.rows(config.batch_size)
        machine = {name: getattr(state.config, name) for name in ("device", "precision", "compile", "threads")}
        machine |= {"ranks": ranks.size, "torch": torch.__version__, "processors": [cpu_name()]}
        if found:
            _restore(state, found, run, machine, ranks)
        if checkpoints:
            checkpoints.machine = machine
        _drive(state, data, report, checkpoints, ranks, run)
    return state.model.eval(), state.history


def _drive(
    state: State, data: ImageSet, report: Report, checkpoints: Checkpoints | None, ranks: Ranks, run: dict[str, Any]
) -> None:
    """Take every step; save when it is due, report each epoch, and stop after the step in which a signal came."""
    saved = f"The step is saved in {checkpoints.folder}. " if checkpoints else ""
    if state.epoch == 0 and not state.steps:
        report({"epoch": 0}, state.model)
    with StopSignal(active=checkpoints is not None or ranks.size > 1) as stop:
        try:
            for _ in train(state, data):
                if not state.steps:  # an epoch has just ended
                    report(state.history[-1], state.model)
                told, due = ranks.agree(stop.signal, checkpoints is not None and checkpoints.due())
                if checkpoints is not None and (told or due):
                    check_finite(state)
                    _save(state, checkpoints, run)
                if told:
                    stop.signal = told  # by some rank
                    ranks.agree(0)  # waits until rank 0 has saved: torchrun ends all ranks once one has left
                    steps = len(state.steps)
                    where = f"{state.epoch + 1}, step {steps}" if steps else f"{state.epoch}, its last step"
                    raise stop.error(f"epoch {where}", saved)
        except NumericalError as error:
            last = checkpoints.newest() if checkpoints else None
            kept = f"The last good checkpoint is {last}." if last else "No checkpoint was written yet."
            raise NumericalError(f"{error} {kept}") from None
        if checkpoints is not None:
            _save(state, checkpoints, run)
        if stop.signal:
            raise stop.error(f"epoch {state.epoch}", saved)


def _save(state: State, checkpoints: Checkpoints, run: dict[str, Any]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for number, parameter in enumerate(state.model.parameters()):
        slots = state.optimizer.state[parameter]
        tensors |= {f"optimizer.{number}.{slot}": v for slot, v in slots.items() if isinstance(v, Tensor)}
    if state.steps:
        tensors["steps"] = torch.stack(state.steps)
    facts = {"epoch": state.epoch, "history": state.history, "seconds": state.seconds}
    checkpoints.save(f"{state.epoch:06d}-{len(state.steps):06d}", tensors, {**run, **facts})


def _restore(state: State, found: Found, run: dict[str, Any], machine: dict[str, Any], ranks: Ranks) -> None:
    """Continue from a checkpoint, on however many ranks, and say so.

    Warns where this ``machine`` differs from the one before, so that last bits may differ, and adds that one's
    processors to it. Raises `CheckpointError` for another run's checkpoint.
    """
    path, tensors, facts = found
    try:
        old = Config.stored(facts["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be resumed. {error}") from None
    changed = Config(**run["config"]).differences(old)
    different = [f"{name} {getattr(old, name)} there, {value} here" for name, value in changed.items()]
    different += [what for name, what in OTHERS.items() if facts.get(name) != run[name]]
    if different:
        raise CheckpointError(f"{path} is of another run: {', '.join(different)}. Remove its folder to start anew.")
    state.model.load_state_dict({name: tensors[f"model.{name}"] for name in state.model.state_dict()})
    parameters = list(state.model.parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, slot = key.split(".")
            parameter = parameters[int(number)]  # its slots have the same layout in memory
            like = torch.empty_like(parameter if value.shape == parameter.shape else value, device=state.config.device)
            state.optimizer.state[parameter][slot] = like.copy_(value)
    state.steps = list(tensors["steps"].to(state.config.device)) if "steps" in tensors else []
    state.epoch, state.history, state.seconds = facts["epoch"], facts["history"], facts["seconds"]
    if ranks.rank == 0:
        for name, now in machine.items():
            if (before := facts["machine"].get(name)) != now:
                print(f"warning: {name} was {before} and is {now}: not bit for bit the same run", flush=True)
        earlier = facts["machine"].get("processors", [])
        machine["processors"] = list(dict.fromkeys([*earlier, *machine["processors"]]))
        print(f"{path.parent.name}  resumed after epoch {state.epoch}, step {len(state.steps)}", flush=True)
