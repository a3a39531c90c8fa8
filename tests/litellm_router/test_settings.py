import subprocess
import sys

import pytest

from litellm_router import P2LSettings
from p2l_plugins import ConfigError


def test_no_settings_mean_the_starter_and_the_best_model():
    settings = P2LSettings.read(None)
    assert (settings.bundle, settings.rule, settings.objective) == ("starter", "best", "win_rate")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"rul": "cap"}, ["p2l_settings.rul", "'cap'", "not a setting", "timeout_ms"]),
        ({"rule": "cheap"}, ["p2l_settings.rule", "'cheap'", "'best', 'cap', 'lp' or 'paced'"]),
        ({"rule": "cap"}, ["'cap'", "budget", "USD per request"]),
        ({"rule": "lp", "budget": -1}, ["p2l_settings.budget", "-1", "greater than 0"]),
        ({"budget": float("nan")}, ["p2l_settings.budget", "nan", "finite"]),
        ({"timeout_ms": "soon"}, ["p2l_settings.timeout_ms", "'soon'", "number"]),
        ({"cache": {"entries": 0}}, ["p2l_settings.cache.entries"]),
        ({"cache": {"ur1": "redis://x"}}, ["p2l_settings.cache.ur1", "is not a setting", "namespace"]),
        ({"bundle": ""}, ["p2l_settings.bundle", "''"]),
        (["rule"], ["p2l_settings", "['rule']", "mapping"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_key_value_and_what_is_valid(raw, says):
    with pytest.raises(ConfigError) as caught:
        P2LSettings.read(raw)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_the_package_imports_without_litellm_and_onnxruntime():
    code = (
        "import sys; sys.modules['onnxruntime'] = None; import litellm_router; "
        "assert 'litellm' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_callback_imports_without_onnxruntime():
    code = (
        "import os, sys; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; sys.modules['onnxruntime'] = None; "
        "from litellm_router import p2l_router; from litellm.integrations.custom_logger import CustomLogger; "
        "assert isinstance(p2l_router, CustomLogger)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
