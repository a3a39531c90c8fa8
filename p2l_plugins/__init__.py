"""Prompt-to-Leaderboard where people already work: score prompts, build leaderboards, route requests.

>>> from p2l_plugins import P2L
>>> scores = P2L.load("starter").score(["Prove that the square root of 2 is irrational"])
>>> print(scores.leaderboard().to_markdown(top=5))
"""

from p2l_plugins.errors import BundleError, ConfigError, DataError, P2LError, PromptError
from p2l_plugins.leaderboards.leaderboard import Leaderboard
from p2l_plugins.scoring.scorer import P2L, Scores

__version__ = "0.1.0"

__all__ = [
    "P2L",
    "BundleError",
    "ConfigError",
    "DataError",
    "Leaderboard",
    "P2LError",
    "PromptError",
    "Scores",
]
