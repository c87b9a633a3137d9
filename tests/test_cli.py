import json
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image

from ccrepro import cli
from ccrepro.cli import main
from ccrepro.data.registry import DATASETS
from ccrepro.errors import DataError
from ccrepro.recipes import recipe
from ccrepro.runtime import device


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "Unknown command 'frobnicate'"),
        (["train", "mnist"], "Unknown data set 'mnist'"),
        (["train", "folder:photos"], "For your own images, use `ccrepro cluster FOLDER`."),
        (["train", "cifar10", "--preset", "demo"], "no recipe for cifar10"),
        (["train", "digits", "--epchs", "3"], "Did you mean --epochs?"),
        (["train", "digits", "--epochs", "-1"], "epochs is -1"),
        (["train", "digits", "--n-clusters", "5000"], "n_clusters is 5000, but Digits has 1797 images"),
        (["train", "digits", "--seed", "banana"], "'banana'"),
        (["train", "digits", "--lr", "banana"], 'unable to convert "banana" into float'),
        (["train", "digits", "--backbone", "resnet43"], 'Did you mean "resnet34"?'),
        (["train", "digits", "--epochs", "2.5"], "'2.5'"),
        (["train", "digits", "--max-minutes", "3", "--epochs", "2"], "Give one of them"),
        (["train", "digits", "--variant", "view-one"], "Did you mean 'views-one'?"),
        (
            ["evaluate", "--authors-checkpoint", "x.tar", "--dataset", "digits"],
            "The preset paper has no recipe for digits",
        ),
        (["datasets", "get", "cifar1"], "Did you mean 'cifar10'?"),
        (["cluster", "nowhere", "--n-clusters", "1", "--out", "out"], "n_clusters is 1"),
        (["cluster", "nowhere", "--n-clusters", "2.5"], "'2.5' is neither a number nor auto"),
        (["cluster", "nowhere", "--n-clusters", "3", "--from-scratch", "--backbone", "x"], "Unknown backbone 'x'"),
        (["cluster", ".", "--n-clusters", "3", "--out", "/x", "--backbone", "x"], "Unknown pretrained network 'x'"),
        (["embed", "nowhere", "nowhere", "--out", "features.csv"], ".npz"),
        (["reproduce", "--preset", "own"], "Unknown preset 'own'"),
        (["reproduce", "--variants", "cc", "typo"], "Unknown variant 'typo'"),
        (["table", "haeds"], "Did you mean 'heads'?"),
        (["table", "--format", "html"], 'Invalid value "html"'),
        (["bench", "--rounds", "0"], "Must be >= 1"),
    ],
    ids=" ".join,
)
def test_mistakes_get_a_line_or_two_and_exit_code_2(capsys, arguments, says):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ccrepro: error: ")
    assert printed.err.count("\n") <= 2
    assert says in printed.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (PermissionError(13, "Permission denied", "x"), 1), (DataError(), 3)],
)
def test_what_stops_a_command_is_one_line_but_for_debug(monkeypatch, capsys, error, code):
    monkeypatch.setattr(cli, "_config", mock.Mock(side_effect=error))
    assert main(["recipe", "digits"]) == code
    assert re.fullmatch("ccrepro: error: .*\n", capsys.readouterr().err)
    if code != 130:
        with pytest.raises(type(error)):
            main(["recipe", "digits", "--debug"])


def test_who_stops_reading_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ccrepro", "recipe", "digits", "--preset", "demo"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_mistakes_are_told_before_torch_is_imported():
    program = "import sys; from ccrepro.cli import main; main(['train', 'mnist']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_help_lists_every_setting(capsys):
    printed = ""
    for command in ("train", "cluster", "reproduce"):
        assert main([command, "--help"]) == 0
        printed += capsys.readouterr().out
    assert printed.count("--instance-temperature") == 3


def test_without_a_preset_the_one_that_fits_the_machine_is_taken_and_told(capsys, monkeypatch):
    for gpus, dataset, preset in (([], "digits", "demo"), ([], "cifar10", "laptop"), ([], "imagenette", "fast"),
                                  (["0"], "cifar10", "fast"), (["0"], "digits", "demo")):  # fmt: skip
        monkeypatch.setattr(device, "visible_gpus", lambda found=gpus: found)
        assert main(["recipe", dataset]) == 0
        printed = capsys.readouterr()
        assert yaml.safe_load(printed.out)["preset"] == preset
        assert printed.err == f"Preset {preset}, which fits this machine. --preset names another.\n"


def test_recipe_prints_every_setting(capsys):
    assert main(["recipe", "cifar10", "--preset", "paper", "--epochs", "20"]) == 0
    printed = capsys.readouterr().out
    assert recipe(**yaml.safe_load(printed)) == recipe("cifar10", "paper", epochs=20)


def test_data_sets_and_tables_are_printed(capsys):
    assert main(["datasets"]) == main(["datasets", "get", "digits"]) == 0
    *listed, got = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 + len(DATASETS)
    assert got.startswith("1,797 images of 8×8 pixels; 10 classes; ")
    assert main(["table", "heads", "--format", "csv"]) == main(["table", "--preset", "laptop"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nDigits,") == 5
    assert "| 0.229 " in printed


def test_a_baseline_does_not_say_that_it_trains(root, capsys):
    assert main(["train", "digits", "--variant", "kmeans-pixels"]) == 0
    assert capsys.readouterr().out.startswith("finished: NMI 0.")


def test_a_model_is_trained_evaluated_and_put_to_use(root, digits, capsys):
    arguments = ["--sample", "320", "--batch-size", "64", "--epochs", "1", "--commit", "c" * 40]
    assert main(["train", "digits", *arguments]) == 0
    folder = root / "runs/demo/digits/cc-1ep-sample=320-batch_size=64-seed0"
    record = json.loads((folder / "run.json").read_text())
    assert record["commit"] == "c" * 40
    said = capsys.readouterr().out
    assert said.startswith("320 images, network small on cpu, batches of 64 images, views of 8×8 pixels\n")
    assert f"ACC {record['scores']['acc']:.4f}" in said
    assert not (root / "results").exists()
    assert main(["train", "digits", *arguments]) == 0
    assert (
        f"Trained before; --restart trains it anew. finished: NMI {record['scores']['nmi']:.4f}"
        in capsys.readouterr().out
    )
    assert json.loads((folder / "run.json").read_text()) == record
    assert main(["train", "digits", *arguments[:-1], "d" * 40, "--restart"]) == 0
    assert json.loads((folder / "run.json").read_text())["commit"] == "d" * 40
    capsys.readouterr()

    assert main(["evaluate", str(folder)]) == 0
    assert capsys.readouterr().out.count("ACC 0.") == 2

    Image.fromarray(digits.images[0, 0]).save(root / "0.png")
    assert main(["predict", str(folder), str(root / "0.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["embed", str(folder), str(root / "0.png"), "--out", str(root / "features.npz")]) == 0
    features = np.load(root / "features.npz")
    assert features["z"].shape == (1, 64)
    assert features["cluster"].tolist() == [found["cluster"]]
