import os
import subprocess
import sys

import pytest
import yaml

from ccrepro import files
from ccrepro.cli import main
from ccrepro.config import recipe


def error_of(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("ccrepro: error: ")
    return code, captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["train", "mnist"], "unknown data set 'mnist'"),
        (["train", "cifar10"], "Use profile=fast"),
        (["train", "digits", "--bogus", "1"], "unknown option '--bogus'"),
        (["train", "digits", "--epoch", "1"], "Write '--epochs'"),
        (["train", "digits", "--epochs"], "expected one argument"),
        (["train", "digits", "--epochs", "-1"], "at least 0"),
        (["train", "digits", "--epochs", "0"], "at least 1"),
        (["train", "digits", "--n-clusters", "1"], "at least 2"),
        (["train", "digits", "--n-clusters", "5000"], "at most 1797"),
        (["train", "digits", "--batch-size", "5000"], "at most 1797"),
        (["train", "digits", "--instance-temperature", "0"], "above 0"),
        (["train", "digits", "--seed", "banana"], "an integer"),
        (["check", "--datasets", "digits", "--variants", "cc", "typo", "--seeds", "0"], "unknown variant 'typo'"),
        (["check", "--datasets", "digits", "--variants", "cc", "--seeds", "x"], "seed is 'x'"),
        (["check", "--profile", "p", "--datasets", "digits", "--variants", "cc", "--seeds", "0"], "profile 'p'"),
        (["plan", "--profile", "own", "--datasets", "own", "--variants", "cc", "--seeds", "0"], "profile 'own'"),
        (["compare", "--profile", "dmeo"], "Write 'demo'"),
        (["train", "own"], "unknown data set 'own'"),
        (["bench", "--rounds", "0"], "at least 1"),
        (["notebook", "nowhere.ipynb", "out.ipynb"], "no notebook nowhere.ipynb"),
        (["notebook", "nowhere.ipynb", "out.ipynb", "seed"], "has no value"),
    ],
    ids=" ".join,
)
def test_mistakes_get_one_line_and_exit_code_2(capsys, arguments, says):
    code, line = error_of(capsys, *arguments)
    assert code == 2
    assert says in line


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown data set"):
        main(["train", "mnist", "--debug"])


def test_recipe_prints_every_setting(capsys):
    assert main(["recipe", "cifar10", "--profile", "paper", "--epochs", "20"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert recipe(**printed) == recipe("cifar10", "paper", epochs=20)


def test_check_of_good_names_is_silent(capsys):
    arguments = ["--datasets", "digits", "--variants", "cc", "views-one", "--seeds", "0", "1"]
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out == ""


def test_train_writes_a_run_and_prints_its_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert main(["train", "digits", "--sample", "320", "--batch-size", "64", "--epochs", "1"]) == 0
    assert (tmp_path / "runs/demo/digits/cc-seed0+sample=320+batch_size=64+epochs=1/run.json").exists()
    assert not (tmp_path / "results").exists()
    assert "ACC 0." in capsys.readouterr().out


def test_mistakes_are_told_before_torch_is_imported():
    program = "import sys; from ccrepro.cli import main; main(['train', 'mnist']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    assert "--instance-temperature" in capsys.readouterr().out


def test_who_stops_reading_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ccrepro", "recipe", "digits"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=files.ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_names_defaults_that_say_something(capsys):
    with pytest.raises(SystemExit):
        main(["cluster", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ccrepro cluster FOLDER --n-clusters K --out DIR")
    assert "--epochs X" in printed
    assert "(default: None)" not in printed
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "one of demo, fast, paper (default: demo)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ccrepro train DATASET [--SETTING X ...] [OPTION ...]\n")
    assert "profile demo, variant cc and seed 0 where these are left out" in printed
