import json

import numpy as np
import pytest
from pydantic import ValidationError

from ccrepro.config import Config
from ccrepro.errors import ConfigError


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().epochs = 3


def test_values_may_come_as_text_and_from_numpy():
    config = Config(epochs="7", lr="3e-4", crop_scale=["0.2", "1"], entropy_weight=np.int64(2), unlabeled="False")
    assert (config.epochs, config.lr, config.crop_scale, config.entropy_weight) == (7, 3e-4, (0.2, 1.0), 2.0)
    assert config.unlabeled is False


BAD = [  # settings, and what the message must name: the value, and the rule or the nearest name
    ({"seed": "banana"}, "seed is 'banana'", "a valid integer"),
    ({"seed": -1}, "seed is -1", "greater than or equal to 0"),
    ({"epochs": 2.5}, "epochs is 2.5", "a valid integer"),
    ({"epochs": 0}, "epochs is 0", "untrained"),
    ({"n_clusters": 1}, "n_clusters is 1", "greater than or equal to 2"),
    ({"batch_size": float("inf")}, "batch_size is inf", "a finite number"),
    ({"instance_temperature": 0}, "instance_temperature is 0", "greater than 0"),
    ({"lr": "fast"}, "lr is 'fast'", "a valid number"),
    ({"lr": float("nan")}, "lr is nan", "a finite number"),
    ({"lr": float("inf")}, "lr is inf", "a finite number"),
    ({"flip": 1.5}, "flip is 1.5", "less than or equal to 1"),
    ({"crop_scale": (0.9, 0.1)}, "crop_scale is (0.9, 0.1)", "the smaller first"),
    ({"crop_scale": 0.5}, "crop_scale is 0.5", "a valid tuple"),
    ({"backbone": "resnet43"}, "'resnet43'", "'resnet34'"),
    ({"unlabeled": "maybe"}, "unlabeled is 'maybe'", "a valid boolean"),
    ({"views": 2}, "Unknown views 2", "'both'"),
]


@pytest.mark.parametrize(("settings", "what", "allowed"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_settings_are_named_with_what_is_allowed(settings, what, allowed):
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    assert what in str(caught.value)
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_differences_leave_the_machine_out():
    changed = Config(epochs=5, lr=1e-2, device="cpu", threads=2, compile="off")
    assert changed.differences(Config()) == {"epochs": 5, "lr": 1e-2}


def test_settings_of_another_version_are_mapped_or_named():
    own = json.loads(json.dumps(dict(Config(lr=0.1))))
    earlier = {("profile" if name == "preset" else name): value for name, value in own.items()}
    assert Config.stored(own) == Config.stored(earlier) == Config(lr=0.1)
    with pytest.raises(ConfigError, match=r"^Unknown settings: rule, zoom; Missing settings: blur, lr\. Make it anew"):
        Config.stored(
            {name: value for name, value in own.items() if name not in ("lr", "blur")} | {"zoom": 1, "rule": 2}
        )
    with pytest.raises(ConfigError, match=r"^epochs is -1"):
        Config.stored(own | {"epochs": -1})
