"""The cells of a reproduction as one job array under SLURM: one index per cell that is still to run.

A cell is the command that a person would type. Ahead of the time limit it gets SIGTERM, saves, and is queued again; it
goes on from its newest checkpoint. Nothing here needs torch.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from ccrepro import datasets, files
from ccrepro.config import Config
from ccrepro.errors import CcreproError, ConfigError, DataError
from ccrepro.plan import Cell

WARNING = 120  # seconds from the warning to the time limit: the step under way and a checkpoint take less

INDEX = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'  # this index of the array, and no other

SCRIPT = """\
#!/bin/bash
# Made by ccrepro slurm: one array index for each of {n} cells.
#SBATCH --job-name=ccrepro
#SBATCH --array=0-{last}{at_once}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir={root}
#SBATCH --output={logs}/%A_%a.log
{more}
cells=(  # the run's folder, data set, variant, seed
{cells}
)
read -r cell dataset variant seed <<< "${{cells[$SLURM_ARRAY_TASK_ID]}}"
[ ! -e {runs}/"$cell/run.json" ] || {{ echo "$cell is done"; exit 0; }}

export OMP_NUM_THREADS=1 PYTHONHASHSEED=0
{command} &
run=$!
again=
trap 'again=yes; {terminate}' USR1  # the limit is near: save, and go on in the next turn
trap : TERM  # scancel, or the node is wanted: SLURM tells the run itself, and a second SIGTERM would cut its save short
while kill -0 "$run" 2> /dev/null; do wait "$run"; done  # a signal ends the wait, not the run
wait "$run"
code=$?
if [ -n "$again" ] && [ "$code" -ge 128 ]; then  # 143: saved after SIGTERM
  scontrol requeue {index}
fi
exit "$code"
"""


class Job(NamedTuple):
    """What every cell asks of the cluster, and where its files are."""

    gpus: int = 1  # on each node; 0: none is asked for
    nodes: int = 1
    cpus: int = 4  # for each GPU
    time: str = "12:00:00"
    at_once: int = 0  # cells that may run at once; 0: all
    more: tuple[str, ...] = ()  # further options of sbatch
    runs_dir: str = "runs"
    results_dir: str = "results"
    data_dir: str = ""


def script(cells: list[Cell], job: Job) -> str:
    """The job script of the cells that are still to run; there must be some. Raises `ConfigError` for a job that
    cannot be."""
    for name, least in {"gpus": 0, "nodes": 1, "cpus": 1, "at_once": 0}.items():
        if getattr(job, name) < least:
            what = f"{name.replace('_', ' ')} is {getattr(job, name)}"
            raise ConfigError(what, "ccrepro slurm", f"It must be at least {least}", "Correct it")
    to_run = [cell.config for cell in cells if not cell.done]
    more = (f"--gres=gpu:{job.gpus}", *job.more) if job.gpus else job.more
    return SCRIPT.format(
        n=len(to_run),
        last=len(to_run) - 1,
        at_once=f"%{job.at_once}" if job.at_once else "",
        nodes=job.nodes,
        tasks=max(job.gpus, 1),
        cpus=job.cpus,
        time=job.time,
        warning=WARNING,
        root=shlex.quote(str(files.ROOT)),
        runs=shlex.quote(str(files.ROOT / job.runs_dir)),
        logs=shlex.quote(str(_logs(job))),
        more="".join(f"#SBATCH {option}\n" for option in more),
        cells="\n".join(f'  "{c.cell} {c.dataset} {c.variant} {c.seed}"' for c in to_run),
        command=_command(to_run[0], job),
        terminate=_terminate(job),
        index=INDEX,
    )


def _command(config: Config, job: Job) -> str:
    """What trains a cell of a plan, in the shell's words; several GPUs have a process each, which srun starts.

    Where one process fails the others are ended. Where one is done the others may go on: rank 0 has the scoring.
    """
    words = [shlex.quote(sys.executable), "-m", "ccrepro", "train", '"$dataset"', "--profile", config.profile]
    words += ["--variant", '"$variant"', "--seed", '"$seed"']
    for name, folder in {"runs": job.runs_dir, "results": job.results_dir, "data": str(_data(job))}.items():
        words += [f"--{name}-dir", shlex.quote(folder)]
    if _processes(job) == 1:
        return " ".join(words)
    srun = ["srun", f"--cpus-per-task={job.cpus}", "--kill-on-bad-exit=1", "--wait=0"]
    return " ".join([*srun, *words, "--devices", str(max(job.gpus, 1)), "--nodes", str(job.nodes)])


def _terminate(job: Job) -> str:
    """What lets a cell save and end. srun itself must not be told: it kills its tasks on SIGTERM. Nor may the job be
    named by SLURM_JOB_ID, which for one index of an array is the whole array's."""
    return 'kill -TERM "$run"' if _processes(job) == 1 else f"scancel --signal=TERM {INDEX}"


def _processes(job: Job) -> int:
    return max(job.gpus, 1) * job.nodes


def _logs(job: Job) -> Path:
    return files.ROOT / job.runs_dir / "slurm"


def _data(job: Job) -> Path:
    return datasets.data_root(job.data_dir).resolve()


def submit(cells: list[Cell], job: Job) -> str:
    """Hand the script to sbatch; returns what it answers.

    Raises `DataError` for a data set that is not packed yet, which jobs would do perhaps without a network;
    `ConfigError` where there is no sbatch; `CcreproError` with sbatch's own words where it refuses.
    """
    text = script(cells, job)
    if shutil.which("sbatch") is None:
        fix = "Run it there; --dry-run prints the script anywhere"
        raise ConfigError("no sbatch here", "PATH", "A machine that submits to SLURM has it", fix)
    for name in sorted({cell.config.dataset for cell in cells if not cell.done} - {"digits"}):
        if not (_data(job) / "packed" / name / "index.json").exists():
            allowed, fix = "Jobs read what is packed", f"Run python -m ccrepro datasets get {name}"
            raise DataError(f"{name} is not packed", str(_data(job)), allowed, fix)
    _logs(job).mkdir(parents=True, exist_ok=True)  # or else SLURM ends the jobs without a word
    done = subprocess.run(["sbatch"], input=text, capture_output=True, text=True)
    if done.returncode:
        what = f"sbatch refused: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}"
        raise CcreproError(what, "ccrepro slurm", "It must take the script", "See it with --dry-run, and correct it")
    return f"{done.stdout.strip()}; logs in {_logs(job)}"
