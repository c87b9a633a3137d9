"""The command line: ``python -m ccrepro COMMAND``. One line on a mistake, with its exit code; ``--debug`` for more."""

import argparse
import dataclasses
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ccrepro import gpus
from ccrepro.config import OWN, PROFILES, RECIPES, Config, read_settings, recipe
from ccrepro.errors import CcreproError, ConfigError, unknown


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of an option, where it has one that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, and which takes no abbreviated options."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=Help, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, "command line", f"See {self.prog} --help", "Correct the command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _take_any_text()
    try:
        options = _parse(arguments)
        options.command(options)
        print(end="", flush=True)
        return 0
    except CcreproError as error:
        if "--debug" in arguments:
            raise
        print(f"ccrepro: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read our lines has gone: `ccrepro predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141
    except OSError as error:
        if "--debug" in arguments:
            raise
        what, where = error.strerror or error, error.filename or "the file system"
        print(f"ccrepro: error: {what} ({where}). It must be usable. Correct the path or its rights.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "ccrepro: error: stopped by Ctrl-C (outside training). Nothing was half-written. Run it again.",
            file=sys.stderr,
        )
        return 130


def _take_any_text() -> None:
    """Letters that the terminal's encoding lacks are printed as escapes, and Pillow's warnings of odd files, which we
    name ourselves, not at all."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        raise unknown("option", rest[0], "command line", _options(parser, options.name))
    profile = getattr(options, "profile", PROFILES[0])
    if profile not in PROFILES:
        raise unknown("profile", profile, "--profile", PROFILES)
    return options


def _options(parser: Parser, command: str) -> list[str]:
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [s for a in commands.choices[command]._actions for s in a.option_strings if s.startswith("--")]


def _parser() -> Parser:
    parser = Parser(prog="ccrepro", description="Contrastive Clustering (Li et al., AAAI 2021), reproduced.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(name: str, function: Any, text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(command=function)
        return command

    train = add("train", _train, "train one data set, variant and seed, score it and write its record")
    settings = add("recipe", _recipe, "print the settings of a data set, variant and seed as YAML")
    for command in (train, settings):
        _add_settings(command)
    train.add_argument("--resume", action="store_true", help="insist on a checkpoint; one that is there is used anyway")
    train.add_argument("--log", choices=["jsonl", "tensorboard"], default="jsonl", help="the log; JSONL is always kept")
    _add_folders(train, "runs", "results", "data")
    data = add("datasets", _datasets, "list the data sets, or get one: fetch, verify and pack it for all runs")
    data.add_argument("action", nargs="?", choices=["list", "get"], default="list")
    data.add_argument("dataset", nargs="?", metavar="NAME", help="a data set to get, or folder:PATH")
    data.add_argument("--imagenet", metavar="DIR", help="ILSVRC-2012's training folder, for the two subsets of it")
    data.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be read")
    _add_folders(data, "data")
    check = add("check", _check, "check the names of a reproduction before it starts")
    plan = add("plan", _plan, "list the cells of a reproduction: done or to run, and the hours that this may take")
    slurm = add("slurm", _slurm, "hand the cells that are to run to SLURM: one job array, one index per cell")
    for command in (check, plan, slurm):
        _add_profile(command)
        for name in ("datasets", "variants", "seeds"):
            command.add_argument(f"--{name}", nargs="+", required=True, help=f"the {name} to be run")
    _add_job(slurm)
    plan.add_argument("--cells", action="store_true", help="print the cells that are to run, cheap ones first")
    notebook = add("notebook", _notebook, "run a notebook with papermill, refusing unknown parameters")
    notebook.add_argument("path", help="the notebook")
    notebook.add_argument("output", help="where the executed copy goes")
    notebook.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="parameters, values in YAML")
    compare = add("compare", _compare, "print fresh results beside the committed ones")
    _add_profile(compare)
    bench = add("bench", _bench, "measure our speed beside the authors' way and the limit; saved under results/bench")
    bench.add_argument("--rounds", type=int, default=7, help="turns of each way; 3 for a quick look")
    bench.add_argument(
        "--only", nargs="+", default=[], help="augmentation, losses, scores, step; then nothing is saved"
    )
    bench.add_argument("--device", default="auto", help="auto, cpu or cuda")
    _add_folders(bench, "results")
    add("readme", _readme, "put claims and tables of the published runs into README.md and README.ko.md")
    report = add("report", _report, "make one page of a profile: claims, tables, figures, where numbers come from")
    _add_profile(report)
    stream = add("online", _online, "measure a finished run of the full method on a stream of its images")
    _add_settings(stream)
    _add_folders(stream, "data")
    _add_pictures(add)
    _add_models(add)
    _add_away(add)
    return parser


def _add_profile(command: Parser) -> None:
    command.add_argument("--profile", default="demo", help="one of " + ", ".join(PROFILES))


def _add_folders(command: Parser, *names: str) -> None:
    texts = {name: (name, f"folder of {name}; a relative one is taken from the clone") for name in ("runs", "results")}
    texts["data"] = ("", "folder of data sets; else $CCREPRO_DATA, else data/ in the clone")
    for name in names:
        command.add_argument(f"--{name}-dir", default=texts[name][0], help=texts[name][1])


def _add_job(slurm: Parser) -> None:
    """What each cell asks of a cluster."""
    slurm.add_argument("--dry-run", action="store_true", help="print the job script, and submit nothing")
    slurm.add_argument("--gpus-per-cell", type=int, default=1, help="GPUs of a cell on each of its nodes; 0 on CPUs")
    slurm.add_argument("--nodes", type=int, default=1, help="nodes of a cell")
    slurm.add_argument("--cpus-per-gpu", type=int, default=4, help="cores beside each GPU")
    slurm.add_argument("--time", default="12:00:00", help="limit of one turn; a cell that needs more is queued again")
    slurm.add_argument("--array-limit", type=int, default=0, help="cells that may run at once; 0: all")
    slurm.add_argument("--partition", help="the cluster's part to run on")
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another of sbatch's, as in --sbatch=--account=me",
    )
    _add_folders(slurm, "runs", "results", "data")


def _add_pictures(add: Callable[..., Parser]) -> None:
    """The commands for a folder of one's own."""
    cluster = add("cluster", _cluster, "cluster a folder of pictures: CSV, contact sheets, an HTML gallery, the model")
    cluster.add_argument("folder", help="pictures, in it and in its sub-folders")
    cluster.add_argument("--n-clusters", required=True, metavar="K", help="10; or 2:20 tries each and suggests one")
    cluster.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    cluster.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be read")
    fixed = ("dataset", "profile", "variant", "n_clusters", "baseline", "unlabeled", "sample", "devices", "nodes")
    text = "of the training; those left out are chosen by the number of pictures and their size"
    settings = cluster.add_argument_group("settings", text)
    _add_options(settings, [f for f in dataclasses.fields(Config) if f.name not in fixed])
    cluster.usage = "%(prog)s FOLDER --n-clusters K --out DIR [--skip-bad] [--SETTING X ...]"
    predict = add("predict", _predict, "the cluster of each picture, one JSON line each as soon as it is known")
    embed = add("embed", _embed, "the features of each picture, to one .npz or .parquet file")
    for command in (predict, embed):
        command.add_argument("model", help="model.safetensors, or the folder of a finished run or of cluster --out")
        command.add_argument("source", help="a folder, a picture, or - for paths on standard input")
    embed.add_argument("--out", required=True, metavar="FILE", help="FILE.npz or FILE.parquet")


def _add_models(add: Callable[..., Parser]) -> None:
    """The commands for trained models and published results."""
    evaluate = add("evaluate", _evaluate, "score a trained model on a data set: NMI, ACC, ARI")
    evaluate.add_argument("model", nargs="?", help="the folder of a finished run, or a saved model")
    evaluate.add_argument("--authors-checkpoint", metavar="FILE", help="checkpoint_N.tar of the authors' code, instead")
    evaluate.add_argument("--dataset", help="its name; else the one that the model was trained on")
    evaluate.add_argument("--backbone", default=argparse.SUPPRESS, help="of the authors' checkpoint; else resnet34")
    _add_folders(evaluate, "data")
    export = add("export", _export, "write a trained model as a checkpoint of the authors' code")
    export.add_argument("model", help="the folder of a finished run, or a saved model")
    export.add_argument("file", help="the checkpoint to write, such as checkpoint_1000.tar")
    table = add("table", _table, "print a table of the paper: reported numbers beside ours")
    table.add_argument("table", nargs="?", help="its name; else all of them")
    _add_profile(table)
    watch = add("watch", _watch, "show a run's log in the terminal while it grows")
    watch.add_argument("run", help="folder of the run: runs/…, or cluster --out")
    watch.add_argument("--once", action="store_true", help="show it as it is, and end")


def _add_away(add: Callable[..., Parser]) -> None:
    """The commands for a machine that is lent for minutes."""
    away = add("away", _away, "train on a machine that is lent for minutes: pack, work there, fetch, home; docs/gpu.md")
    away.add_argument("action", choices=["pack", "work", "fetch", "home"], help="here, there, there, here")
    away.add_argument("loads", nargs="*", metavar="LOAD", help="folders of loads that arrived; fetch: a load's number")
    away.add_argument("--queue", default="gpu.yaml", help="what is to be done, in this order")
    away.add_argument("--minutes", type=float, default=9.0, help="of work: then the step under way is saved")
    away.add_argument("--out", default="out", metavar="DIR", help="folder of work and fetch for what is to come home")
    away.add_argument("--transfer", type=float, default=63.0, help="of pack: MiB of one transfer, code and load")
    away.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    _add_folders(away, "results", "data")


def _add_settings(command: Parser) -> None:
    """One option per field of `Config`; a value is checked by the field's own rule."""
    command.add_argument("dataset", metavar="DATASET", help="name of the data set")
    command.add_argument("--settings", metavar="FILE", help="YAML file of settings; options on the command line win")
    text = "profile demo, variant cc and seed 0 where these are left out; the others are then their recipe's"
    settings = command.add_argument_group("settings", text)
    _add_options(settings, [f for f in dataclasses.fields(Config) if f.name != "dataset"])
    command.usage = "%(prog)s DATASET [--SETTING X ...] [OPTION ...]"


def _add_options(command: argparse._ActionsContainer, fields: Sequence[dataclasses.Field]) -> None:
    for f in fields:
        text = f"{f.metadata['doc']} ({f.metadata['rule'].allowed})".replace("%", "%%")
        command.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="X", help=text)


def _config(options: argparse.Namespace) -> Config:
    names = {f.name for f in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return recipe(**{"profile": "demo", "variant": "cc", "seed": 0, **_from_file(options), **given})


def _from_file(options: argparse.Namespace) -> dict[str, Any]:
    return read_settings(options.settings) if options.settings else {}


def _train(options: argparse.Namespace) -> None:
    config = _config(options)
    from ccrepro import ranks  # torch takes seconds to import; mistakes are told at once

    config = ranks.settle(config)
    gpus.claim(config)
    if ranks.to_be_launched(config):
        ranks.launch(config, sys.argv[1:])
        return
    from ccrepro import datasets, run, train  # and this again as long, for which no launcher waits

    with ranks.join(config) as together:
        with together.one_first():
            data = datasets.sample(datasets.load(config.dataset, options.data_dir), config.sample, config.seed)
        if together.rank > 0:
            train.train(config, data, ranks=together)
            return
        this = run.Run(config, data, options.runs_dir, options.results_dir)
        if options.resume:
            this.checkpoints.require()
        report = this.report
        if options.log == "tensorboard":
            from ccrepro import watch

            report = watch.also_tensorboard(this.report, this.folder / "tensorboard")
        trained = train.train(config, data, report, this.checkpoints, together)
    record = this.finish(*trained)
    print(*(f"{name.upper()} {value:.4f}" for name, value in record["scores"].items()), f"-> {this.folder}/run.json")


def _datasets(options: argparse.Namespace) -> None:
    from ccrepro import datasets
    from ccrepro.datasets import catalog

    if options.action == "list":
        print(catalog.catalog(options.data_dir).to_markdown(index=False))
        return
    if options.dataset is None:
        raise ConfigError("no data set named", "datasets get", "Write one of the names it lists", "Add the name")
    if options.imagenet:
        from ccrepro.datasets import fetch  # late: needs the network's libraries

        fetch.from_imagenet(options.dataset, Path(options.imagenet), datasets.data_root(options.data_dir))
    data = datasets.load(options.dataset, options.data_dir, options.skip_bad)
    print(f"{len(data.images):,} images of {data.images.shape[1:]}, {len(data.class_names)} classes: {data.sha256}")


def _recipe(options: argparse.Namespace) -> None:
    settings = dataclasses.asdict(_config(options))
    print(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}, sort_keys=False))


def _check(options: argparse.Namespace) -> None:
    from ccrepro import files

    files.sweep(files.ROOT / "results")  # what a reproduction left that was killed while it wrote
    for dataset, variant, seed in itertools.product(options.datasets, options.variants, options.seeds):
        recipe(dataset, options.profile, variant, seed)


def _notebook(options: argparse.Namespace) -> None:
    from ccrepro import notebook

    parameters = {}
    for text in options.parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} has no value", "command line", "Write NAME=VALUE", "Add =VALUE")
        parameters[name] = yaml.safe_load(value)
    notebook.run(options.path, options.output, parameters)


def _compare(options: argparse.Namespace) -> None:
    from ccrepro import results

    print(results.compare(options.profile))


def _bench(options: argparse.Namespace) -> None:
    from ccrepro import bench

    if options.rounds < 1:
        raise ConfigError(f"rounds is {options.rounds}", "--rounds", "It must be at least 1", "Write --rounds 3")
    for name in options.only:
        if name not in bench.SECTIONS:
            raise unknown("section", name, "--only", bench.SECTIONS)
    result = bench.run(options.rounds, tuple(options.only), options.device)
    print(bench.table(result).to_string(index=False) if options.only else bench.save(result, options.results_dir))


def _readme(options: argparse.Namespace) -> None:
    from ccrepro import files, report

    for path in (files.ROOT / name for name in report.READMES):
        files.atomic_write(path, report.readme_with_results(path.read_text()))


def _report(options: argparse.Namespace) -> None:
    from ccrepro import report

    print(*report.save_report(options.profile), sep="\n")


def _plan(options: argparse.Namespace) -> None:
    from ccrepro import plan

    planned = plan.plan(options.profile, options.datasets, options.variants, options.seeds)
    print(plan.missing(planned) if options.cells else plan.as_text(planned))


def _slurm(options: argparse.Namespace) -> None:
    from ccrepro import plan, slurm

    planned = plan.plan(
        options.profile, options.datasets, options.variants, options.seeds, options.runs_dir, options.results_dir
    )
    if all(cell.done for cell in planned):
        print(plan.as_text(planned), file=sys.stderr)
        return
    partition = (f"--partition={options.partition}",) if options.partition else ()
    job = slurm.Job(
        gpus=options.gpus_per_cell,
        nodes=options.nodes,
        cpus=options.cpus_per_gpu,
        time=options.time,
        at_once=options.array_limit,
        more=(*partition, *options.sbatch),
        runs_dir=options.runs_dir,
        results_dir=options.results_dir,
        data_dir=options.data_dir,
    )
    print(slurm.script(planned, job) if options.dry_run else slurm.submit(planned, job))


def _online(options: argparse.Namespace) -> None:
    config = _config(options)
    gpus.claim(config)
    from ccrepro import datasets, online

    data = datasets.sample(datasets.load(config.dataset, options.data_dir), config.sample, config.seed)
    result = online.measure(config, data)["assign"]
    for size, same, rate in zip(result["batch_size"], result["same"], result["images_per_second"], strict=True):
        print(f"{config.cell}  {size} at once: {rate:,.0f} images/s, {same:.2%} assigned as offline")


def _cluster(options: argparse.Namespace) -> None:
    names = {f.name for f in dataclasses.fields(Config)} - {"n_clusters"}
    settings = {name: value for name, value in vars(options).items() if name in names}
    recipe(OWN, OWN, **settings)  # mistakes are told before torch is imported
    from ccrepro import collection

    collection.run(options.folder, options.n_clusters, options.out, options.skip_bad, settings)


def _predict(options: argparse.Namespace) -> None:
    from ccrepro import serve

    serve.predict(options.model, options.source)


def _embed(options: argparse.Namespace) -> None:
    from ccrepro import serve

    serve.embed(options.model, options.source, options.out)


def _evaluate(options: argparse.Namespace) -> None:
    if (options.model is None) == (options.authors_checkpoint is None):
        raise ConfigError("which model?", "evaluate", "A MODEL, or --authors-checkpoint FILE", "Give one of the two")
    from ccrepro import serve

    backbone = {"backbone": options.backbone} if "backbone" in options else {}
    if options.authors_checkpoint:
        dataset = options.dataset or "cifar10"
        if dataset not in RECIPES["paper"]:
            raise unknown("data set of the authors", dataset, "--dataset", RECIPES["paper"])
        config = recipe(dataset, "paper", **backbone)
        serve.evaluate_authors(options.authors_checkpoint, config, options.data_dir)
    else:
        serve.evaluate(options.model, options.dataset, options.data_dir)


def _export(options: argparse.Namespace) -> None:
    from ccrepro import checkpoint, foreign

    model, config, _ = checkpoint.load_model(options.model)
    print(foreign.save_authors(model, config, options.file, config.epochs))


def _table(options: argparse.Namespace) -> None:
    from ccrepro import results, tables

    if options.table is not None and options.table not in tables.TABLES:
        raise unknown("table", options.table, "table", tables.TABLES)
    runs = results.load_runs(options.profile)
    for name in [options.table] if options.table else tables.TABLES:
        print(tables.markdown(name, runs))


def _watch(options: argparse.Namespace) -> None:
    from ccrepro import watch

    watch.watch(Path(options.run), options.once)


def _away(options: argparse.Namespace) -> None:
    from ccrepro import away, jobs, parcel

    if options.action == "home":
        print(*away.home(options.loads, options.data_dir, options.results_dir), sep="\n")
        return
    if options.action == "fetch":
        number = options.loads[0] if len(options.loads) == 1 else ""
        print(away.fetch(number, options.out))
        return
    queue = jobs.read_queue(options.queue)
    if options.action == "pack":
        print(parcel.describe(away.pack(queue, options.data_dir, options.transfer)))
    else:
        loads = away.work(queue, options.loads, options.out, options.minutes, options.data_dir, options.threads)
        print(parcel.describe(loads) or "nothing was begun: a load is still to come", flush=True)
