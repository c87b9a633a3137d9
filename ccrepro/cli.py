"""The command line: ``ccrepro COMMAND``. A mistake gets one or two lines and its exit code; ``--debug`` shows more."""

import argparse
import dataclasses
import functools
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ccrepro.config import Config
from ccrepro.data.registry import DATASETS
from ccrepro.errors import CcreproError, ConfigError, unknown
from ccrepro.recipes import OWN, PRESETS, RECIPES, VARIANTS, default_variants, recipe


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, and which takes no abbreviated options."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files, which we name ourselves
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # of letters that the terminal's encoding lacks
    try:
        options = _parse(arguments)
        options.command(options)
        print(end="", flush=True)
        return 0
    except BrokenPipeError:  # who read our lines has gone: `ccrepro predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141
    except (CcreproError, OSError) as error:
        if "--debug" in arguments:
            raise
        ours = isinstance(error, CcreproError)
        print(f"ccrepro: error: {error if ours else f'{error}. Correct the path or its rights.'}", file=sys.stderr)
        return error.exit_code if ours else 1
    except KeyboardInterrupt:
        print("ccrepro: error: Stopped by Ctrl-C. Nothing was half-written: run it again.", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        known = [s for a in commands.choices[options.name]._actions for s in a.option_strings if s.startswith("--")]
        raise unknown("option", rest[0], known)
    return options


def _parser() -> Parser:
    parser = Parser(prog="ccrepro", description="Contrastive Clustering (Li et al., AAAI 2021), reproduced.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(name: str, function: Callable[[argparse.Namespace], None], text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(command=function)
        return command

    _add_method(add)
    _add_images(add)
    _add_paper(add)
    return parser


def _add_method(add: Callable[..., Parser]) -> None:
    """The commands for one run."""
    train = add("train", _train, "train one data set, variant and seed, score it and write its record")
    settings = add("recipe", _recipe, "print the settings of a data set, variant and seed as YAML")
    for command in (train, settings):
        command.add_argument("dataset", metavar="DATASET", help="name of the data set")
        text = "preset demo, variant cc and seed 0 where these are left out; the others are then their recipe's"
        group = command.add_argument_group("settings", text)
        _add_options(group, [f for f in dataclasses.fields(Config) if f.name != "dataset"])
        command.usage = "%(prog)s DATASET [--SETTING X ...] [OPTION ...]"
    text = "in place of --epochs: as many as fit into so many minutes, measured here first"
    train.add_argument("--max-minutes", type=float, metavar="M", help=text)
    train.add_argument("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    train.add_argument("--commit", default="", help="the code's commit, where there is no .git; goes into the record")
    _add_folders(train, "runs", "data")
    evaluate = add("evaluate", _evaluate, "score a trained model on a data set: NMI, ACC, ARI")
    evaluate.add_argument("model", nargs="?", help="the folder of a finished run, or a saved model")
    evaluate.add_argument("--authors-checkpoint", metavar="FILE", help="checkpoint_N.tar of the authors' code, instead")
    evaluate.add_argument("--dataset", help="its name; else the one that the model was trained on")
    evaluate.add_argument("--backbone", default="resnet34", help="of the authors' checkpoint")
    _add_folders(evaluate, "data")
    data = add("datasets", _datasets, "list the data sets, or get one: fetch, verify and pack it for all runs")
    data.add_argument("action", nargs="?", choices=["list", "get"], default="list")
    data.add_argument("dataset", nargs="?", metavar="NAME", help="a data set to get")
    data.add_argument("--imagenet", metavar="DIR", help="ILSVRC-2012's training folder, for the two subsets of it")
    _add_folders(data, "data")


def _add_images(add: Callable[..., Parser]) -> None:
    """The commands for a folder of one's own."""
    cluster = add("cluster", _cluster, "cluster a folder of images: CSV, an HTML gallery, the model")
    cluster.add_argument("folder", help="images, in it and in its sub-folders")
    cluster.add_argument("--n-clusters", required=True, metavar="K", help="number of clusters")
    cluster.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    cluster.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read")
    cluster.add_argument("--pretrained", default="", metavar="WEIGHTS", help="'imagenet', or a file: where to start")
    fixed = ("dataset", "preset", "variant", "n_clusters", "baseline", "unlabeled", "sample")
    text = "of the training; those left out are chosen by the number of images and their size"
    settings = cluster.add_argument_group("settings", text)
    _add_options(settings, [f for f in dataclasses.fields(Config) if f.name not in fixed])
    cluster.usage = "%(prog)s FOLDER --n-clusters K --out DIR [--skip-bad] [--SETTING X ...]"
    predict = add("predict", _predict, "the cluster of each image, one JSON line each as soon as it is known")
    embed = add("embed", _predict, "the features of each image, to one .npz file")
    for command in (predict, embed):
        command.add_argument("model", help="model.safetensors, or the folder of a finished run or of cluster --out")
        command.add_argument("source", help="a folder, an image, or - for paths on standard input")
    embed.add_argument("--out", required=True, metavar="FILE", help="FILE.npz")


def _add_paper(add: Callable[..., Parser]) -> None:
    """The commands for the paper's tables."""
    reproduce = add("reproduce", _reproduce, "run what is missing of a preset, then make its tables and figures")
    reproduce.add_argument("--preset", default="demo", help="one of " + ", ".join(PRESETS))
    reproduce.epilog = "variants: " + "; ".join(f"{name}: {v.about}" for name, v in VARIANTS.items())
    names = {"datasets": "all of the preset", "variants": "all that fit its data sets", "seeds": "0 1 2"}
    for name, default in names.items():
        reproduce.add_argument(f"--{name}", nargs="+", default=[], help=f"the {name} to be run; else {default}")
    text = "what departs from the recipes, as in epochs=10; becomes part of the runs' names"
    reproduce.add_argument("--settings", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    reproduce.add_argument("--jobs", type=int, default=0, help="runs at once; else one per GPU, or one per core")
    reproduce.add_argument(
        "--dry-run", action="store_true", help="say what would be run, and for how long; its arguments to ccrepro"
    )
    _add_folders(reproduce, "runs", "data")
    table = add("table", _table, "print a table of the paper: reported numbers beside ours")
    table.add_argument("table", nargs="?", help="its name; else all of them")
    table.add_argument("--preset", default="demo", help="one of " + ", ".join(PRESETS))
    table.add_argument("--format", choices=["markdown", "latex", "csv"], default="markdown")
    table.add_argument("--results-dir", default="results", help="results/local for what you have run")
    bench = add("bench", _bench, "measure our speed beside the authors' way and the limit; into results/local/bench")
    bench.add_argument("--rounds", type=int, default=7, help="turns of each way; 3 for a quick look")
    bench.add_argument("--only", nargs="+", default=[], help="some of its sections; then nothing is saved")
    bench.add_argument("--device", default="auto", help="auto, cpu or cuda")
    bench.add_argument("--results-dir", default="results/local", help="folder of results")
    publish = add("publish", _publish, "for the maintainers: put what was run into results/ and README.md")
    publish.add_argument("--lessons", action="store_true", help="execute the lesson anew, too")
    publish.add_argument("--jobs", type=int, default=0, help="notebooks at once; else one per core")
    _add_folders(publish, "runs", "data")


FOLDERS = {"runs": ("runs", "folder of runs"), "data": ("", "of data sets; else $CCREPRO_DATA, else data/")}


def _add_folders(command: Parser, *names: str) -> None:
    for name in names:
        command.add_argument(f"--{name}-dir", default=FOLDERS[name][0], help=FOLDERS[name][1])


def _add_options(command: argparse._ActionsContainer, fields: Sequence[dataclasses.Field]) -> None:
    """One option per field of `Config`; a value is checked by the field's own rule."""
    for f in fields:
        text = f"{f.metadata['doc']} ({f.metadata['rule'].allowed})".replace("%", "%%")
        command.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="X", help=text)


def _config(options: argparse.Namespace) -> Config:
    names = {f.name for f in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return recipe(**{"preset": "demo", "variant": "cc", "seed": 0, **given})


def _train(options: argparse.Namespace) -> None:
    began, config = time.monotonic(), _config(options)  # mistakes are told before torch is imported, for seconds
    if options.max_minutes is not None and hasattr(options, "epochs"):
        raise ConfigError("--epochs and --max-minutes both say how long. Give one of them.")
    from ccrepro import data
    from ccrepro.runs import rehearsal
    from ccrepro.runs.record import Run
    from ccrepro.runs.resume import fit
    from ccrepro.runtime.device import choose_device
    from ccrepro.runtime.distributed import join

    with join(choose_device(config.device)) as ranks:
        images = data.sample(data.load(config.dataset, options.data_dir), config.sample, config.seed)
        if options.max_minutes is not None:
            within = functools.partial(rehearsal.epochs_within, config, images, options.max_minutes, began)
            config = config.replace(epochs=ranks.share(within))
        if ranks.rank > 0:
            fit(config, images, ranks=ranks)
            return
        run = Run(config, images, options.runs_dir, tensorboard=options.tensorboard)
        trained = fit(config, images, run.report, run.checkpoints, ranks)
    record = run.finish(*trained, options.commit)
    print(*(f"{name.upper()} {value:.4f}" for name, value in record["scores"].items()), f"-> {run.folder}/run.json")


def _datasets(options: argparse.Namespace) -> None:
    from ccrepro import data

    if options.action == "list":
        print(data.catalog(options.data_dir).to_markdown(index=False))
        return
    if options.dataset is None:
        raise ConfigError("No data set is named. Add one of the names that `ccrepro datasets` lists.")
    if options.imagenet:
        from ccrepro.data import download  # late: needs the network's libraries

        download.from_imagenet(options.dataset, Path(options.imagenet), data.data_root(options.data_dir))
    images = data.load(options.dataset, options.data_dir)
    shape = images.images.shape
    print(f"{shape[0]:,} images of {shape[1:]}, {len(images.class_names)} classes: {images.sha256}")


def _recipe(options: argparse.Namespace) -> None:
    settings = _config(options).model_dump()
    print(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}, sort_keys=False))


def _cluster(options: argparse.Namespace) -> None:
    names = {f.name for f in dataclasses.fields(Config)} - {"n_clusters"}
    settings = {name: value for name, value in vars(options).items() if name in names}
    n_clusters = recipe(OWN, OWN, n_clusters=options.n_clusters, **settings).n_clusters  # mistakes are told at once
    from ccrepro.own_images import cluster

    cluster.run(options.folder, n_clusters, options.out, options.skip_bad, options.pretrained, settings)


def _predict(options: argparse.Namespace) -> None:
    from ccrepro.own_images import predict

    if options.name == "embed":
        predict.embed(options.model, options.source, options.out)
    else:
        predict.predict(options.model, options.source)


def _evaluate(options: argparse.Namespace) -> None:
    if (options.model is None) == (options.authors_checkpoint is None):
        raise ConfigError("Give a MODEL, or --authors-checkpoint FILE.")
    from ccrepro.own_images import predict

    if options.authors_checkpoint:
        dataset = options.dataset or "cifar10"
        if dataset not in RECIPES["paper"]:
            raise unknown("data set of the authors", dataset, RECIPES["paper"])
        config = recipe(dataset, "paper", backbone=options.backbone)
        predict.evaluate_authors(options.authors_checkpoint, config, options.data_dir)
    else:
        predict.evaluate(options.model, options.dataset, options.data_dir)


def _reproduce(options: argparse.Namespace) -> None:
    from ccrepro.reproduce import plan

    if options.preset not in PRESETS:
        raise unknown("preset", options.preset, PRESETS)
    datasets = options.datasets or [d for d in RECIPES[options.preset] if "stand-in" not in DATASETS[d].title]
    variants = options.variants or default_variants(options.preset)
    seeds, changed = options.seeds or [0, 1, 2], _assigned(options.settings)
    planned = plan.plan(options.preset, datasets, variants, seeds, options.runs_dir, **changed)
    gpus, at_once = _workers(options.jobs)
    print(plan.describe(planned, at_once), file=sys.stderr if options.dry_run else sys.stdout, flush=True)
    if not options.dry_run:
        plan.reproduce(planned, at_once, gpus, options.runs_dir, options.data_dir)
        return
    for config in (p.config for p in planned if not p.done):
        words = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
        named = f"train {config.dataset} --preset {config.preset} --variant {config.variant} --seed {config.seed}"
        print(" ".join([named, *words]))


def _assigned(settings: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, several of them, as a dict."""
    wrong = [text for text in settings if "=" not in text]
    if wrong:
        raise ConfigError(f"--settings {wrong[0]} has no value. Write NAME=VALUE, such as epochs=10.")
    return dict(text.split("=", 1) for text in settings)


def _workers(jobs: int) -> tuple[list[str], int]:
    """The GPUs, and how many runs there may be at once."""
    from ccrepro.runtime.device import visible_gpus

    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return gpus, jobs if jobs > 0 else len(gpus) or cores


def _table(options: argparse.Namespace) -> None:
    from ccrepro.reproduce import records, tables

    if options.table is not None and options.table not in tables.TABLES:
        raise unknown("table", options.table, tables.TABLES)
    runs = records.as_runs(records.load_records(options.preset, options.results_dir))
    for name in [options.table] if options.table else tables.TABLES:
        print(tables.formatted(name, runs, kind=options.format), end="\n\n")


def _bench(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise ConfigError(f"--rounds is {options.rounds}. Write at least 1.")
    from ccrepro.bench import measure

    for name in options.only:
        if name not in measure.SECTIONS:
            raise unknown("section", name, measure.SECTIONS)
    result = measure.run(options.rounds, tuple(options.only), options.device)
    print(measure.table(result).to_string(index=False) if options.only else measure.save(result, options.results_dir))


def _publish(options: argparse.Namespace) -> None:
    from ccrepro.reproduce import readme

    readme.publish(_workers(options.jobs)[1], options.lessons, options.runs_dir, options.data_dir)
