"""The command line: ``ccrepro COMMAND``. A mistake gets one or two lines and its exit code; ``--debug`` shows more.

A command is a function, and its signature gives the options. It imports what it needs when it is called: torch takes
seconds, and a mistake is told before.
"""

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

import yaml
from cyclopts import App, CycloptsError, Group, Parameter, UnknownCommandError
from cyclopts.validators import Number

from ccrepro.config import Config
from ccrepro.errors import CcreproError, ConfigError, unknown
from ccrepro.own_images import N_INIT
from ccrepro.recipes import OWN, PRESETS, RECIPES, VARIANTS, recipe


def settings(note: str, *fixed: str) -> Any:
    """The type of keywords that are the settings of `Config`, but for the ``fixed`` ones; each becomes an option."""
    options, group = {}, Group("Settings", help=note)
    for name, field in Config.model_fields.items():
        if name not in fixed:
            more = {
                int: {"converter": lambda kind, tokens: int(tokens[0].value)},  # cyclopts alone makes 2 of 2.5
                bool: {"negative": f"--no-{name}"},
            }.get(field.annotation, {})
            options[name] = Annotated[field.annotation, Parameter(help=field.description, group=group, **more)]
    return TypedDict("Settings", options, total=False)


OfRecipe = settings("Where you give none, the recipe's.", "dataset")
OfRuns = settings(
    "What departs from the recipes. It goes into the runs' names.", "dataset", "preset", "variant", "seed"
)
OfImages = settings(
    "Where you give none, chosen by the number of images and their size.",
    *("dataset", "preset", "variant", "n_clusters", "backbone", "baseline", "unlabeled", "sample"),
)
BACKBONE = (
    "A pretrained network: efficientnet-lite0, which is the default and works offline, or any of timm's names. With "
    "--from-scratch: " + ", ".join(get_args(Config.model_fields["backbone"].annotation)[:-1])
)
FINE_TUNE = (
    "Epochs in which the last stage of a pretrained backbone is trained too, once the best start is found: on a GPU."
)
DataSet = Annotated[str, Parameter(help="Name of the data set.")]
RunsDir = Annotated[str, Parameter(help="Folder of runs; else runs/.")]
DataDir = Annotated[str, Parameter(help="Folder of data sets; else $CCREPRO_DATA, else data/.")]

app = App(
    name="ccrepro",
    help="Contrastive Clustering (Li et al., AAAI 2021), reproduced. With --debug, an error shows its traceback.",
    default_parameter=Parameter(consume_multiple=True, negative=(), show_default=False),
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in arguments if word != "--debug"]
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files, which we name ourselves
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # of letters that the terminal's encoding lacks
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        print(end="", flush=True)
        return 0
    except BrokenPipeError:  # who read our lines has gone: `ccrepro predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141
    except (CcreproError, CycloptsError, OSError) as error:
        if words != arguments:
            raise
        if isinstance(error, UnknownCommandError):  # its own text would import all rooms
            error = unknown("command", words[0], [name for name in app if name[0] != "-"])
        said = f"{error}. Check the path and its permissions." if isinstance(error, OSError) else error
        print(f"ccrepro: error: {said}", file=sys.stderr)
        return 2 if isinstance(error, CycloptsError) else getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("ccrepro: error: Stopped by Ctrl-C. Nothing was half-written: run it again.", file=sys.stderr)
        return 130


def _config(dataset: str, given: dict[str, Any]) -> Config:
    """The recipe with what is given. Without a preset, the one that fits this machine: ``fast`` where a GPU is, else
    ``laptop``, and ``demo`` for digits."""
    if "preset" in given:
        return recipe(dataset, **given)
    Config(**given)  # mistakes are told before torch is imported
    fitting = [preset for preset in ("demo", "laptop", "fast") if dataset in RECIPES[preset]]
    if len(fitting) > 1:
        from ccrepro.runtime.device import visible_gpus

        fitting = fitting[-1:] if visible_gpus() else fitting
    config = recipe(dataset, *fitting[:1], **given)
    print(f"Preset {config.preset}, which fits this machine. --preset names another.", file=sys.stderr)
    return config


@app.command
def train(
    dataset: DataSet,
    /,
    *,
    max_minutes: Annotated[float, Parameter(help="In place of --epochs: as many as fit, measured first.")] = 0,
    restart: Annotated[bool, Parameter(help="Train anew what is done; until the end, the old one stays.")] = False,
    commit: Annotated[str, Parameter(help="Of the code, for the record, where there is no .git.")] = "",
    runs_dir: RunsDir = "",
    data_dir: DataDir = "",
    **given: Unpack[OfRecipe],
) -> None:
    """Train one data set, variant and seed, score it and write its record."""
    if max_minutes and "epochs" in given:
        raise ConfigError("--epochs and --max-minutes both say how long. Give one of them.")
    began, config = time.monotonic(), _config(dataset, given)
    from ccrepro import data
    from ccrepro.runs import rehearsal
    from ccrepro.runs.record import Run, planned
    from ccrepro.runs.resume import fit
    from ccrepro.runtime.device import choose_device
    from ccrepro.runtime.distributed import join

    with contextlib.ExitStack() as held:
        with join(choose_device(config.device)) as ranks:
            images = data.sample(data.load(config.dataset, data_dir), config.sample, config.seed)
            if max_minutes:
                epochs = ranks.share(lambda: rehearsal.epochs_within(config, images, max_minutes, began))
                config = config.replace(epochs=epochs)
            if ranks.rank > 0:
                if not ranks.share(bool):  # rank 0 tells whether the run is done
                    fit(config, images, ranks=ranks)
                return
            run = held.enter_context(Run(config, images, runs_dir, restart))
            done = ranks.share(lambda: bool(run.record))
            if config.epochs and not (done or config.baseline):
                print(f"{len(images.images):,} images, {planned(config)}", flush=True)
            trained = () if done else fit(config, images, run.report, run.checkpoints, ranks)
        record = run.record or run.finish(*trained, commit)
    said = "Trained before; --restart trains it anew. " if done else ""
    scores = "  ".join(f"{name.upper()} {value:.4f}" for name, value in record["scores"].items())
    print(f"{said}finished: {scores} -> {run.final}/run.json")


@app.command(name="recipe")
def print_recipe(dataset: DataSet, /, **given: Unpack[OfRecipe]) -> None:
    """Print the settings of a data set, variant and seed as YAML."""
    print(yaml.safe_dump(_config(dataset, given).model_dump(mode="json"), sort_keys=False))


def _number_or_auto(_: Any, tokens: Sequence[Any]) -> int | str:
    value = tokens[0].value
    if value != "auto" and not value.isdecimal():  # cyclopts alone makes 2 of 2.5
        raise ValueError(f"{value!r} is neither a number nor auto")
    return value if value == "auto" else int(value)


@app.command
def cluster(
    folder: Annotated[str, Parameter(help="Images, in it and in its sub-folders.")],
    /,
    *,
    n_clusters: Annotated[
        int | Literal["auto"],
        Parameter(help="A number, or auto: by the silhouette of k-means.", converter=_number_or_auto),
    ],
    out: Annotated[str, Parameter(help="Folder for the results; else FOLDER-clusters in the current folder.")] = "",
    skip_bad: Annotated[bool, Parameter(help="Leave out images that cannot be read.")] = False,
    from_scratch: Annotated[bool, Parameter(help="Train a network on these alone, as on images below 64 px.")] = False,
    backbone: Annotated[str, Parameter(help=BACKBONE)] = "",
    weights: Annotated[str, Parameter(help="A file of the backbone's weights, where it cannot be downloaded.")] = "",
    n_init: Annotated[int, Parameter(help="Starts on a pretrained backbone, of which the best is kept.")] = N_INIT,
    fine_tune: Annotated[int, Parameter(help=FINE_TUNE, validator=Number(gte=0))] = 0,
    move_into: Annotated[str, Parameter(help="Folder to sort the images into: links where possible, or copies.")] = "",
    **given: Unpack[OfImages],
) -> None:
    """Cluster a folder of images: CSV, an HTML gallery, the model."""
    if from_scratch and backbone:
        given, backbone = {**given, "backbone": backbone}, ""
    recipe(OWN, OWN, n_clusters=2 if n_clusters == "auto" else n_clusters, **given)  # mistakes are told at once
    from ccrepro.own_images import cluster

    network = {"scratch": from_scratch, "backbone": backbone, "weights": weights, "n_init": n_init}
    cluster.run(folder, n_clusters, out, skip_bad, **network, fine_tune=fine_tune, move_into=move_into, settings=given)


@app.command(help_epilogue="Variants: " + "; ".join(f"{name}: {v.about}" for name, v in VARIANTS.items()) + ".")
def reproduce(
    *,
    preset: Annotated[str, Parameter(help=f"One of {', '.join(PRESETS)}.")] = "demo",
    datasets: Annotated[tuple[str, ...], Parameter(help="Data sets; else all of the preset.")] = (),
    variants: Annotated[tuple[str, ...], Parameter(help="Variants, listed below; else all that fit.")] = (),
    seeds: Annotated[tuple[str, ...], Parameter(help="Seeds; else 0 1 2.")] = ("0", "1", "2"),
    jobs: Annotated[int, Parameter(help="Runs at once; else one per GPU, or one per core.")] = 0,
    dry_run: Annotated[bool, Parameter(help="Say what would be run, and for how long; print its arguments.")] = False,
    runs_dir: RunsDir = "",
    data_dir: DataDir = "",
    **given: Unpack[OfRuns],
) -> None:
    """Run what is missing of a preset, then make its tables and figures in results/local."""
    from ccrepro.reproduce import plan

    planned = plan.plan(preset, datasets, variants, seeds, runs_dir, **given)
    if dry_run:
        plan.show(planned, jobs)
    else:
        plan.reproduce(planned, jobs, runs_dir, data_dir)


# What needs no settings stands in its room, whose function is the command; it is imported when it is called.
ROOMS = {
    "predict": ("ccrepro.own_images.predict:predict", "Print the cluster of each image, one JSON line each."),
    "embed": ("ccrepro.own_images.predict:embed", "Write the features of each image to one .npz file."),
    "evaluate": ("ccrepro.own_images.predict:evaluate", "Score a trained model on a data set: NMI, ACC, ARI."),
    "datasets": ("ccrepro.data:command", "List the data sets, or get one."),
    "table": ("ccrepro.reproduce.tables:show", "Print a table of the paper: reported numbers beside ours."),
    "bench": ("ccrepro.bench.measure:bench", "Measure our speed beside the authors' way and the limit."),
    "publish": ("ccrepro.reproduce.readme:publish", "For the maintainers: put what was run into results/."),
}
for name, (function, text) in ROOMS.items():
    app.command(function, name=name, help=text)
