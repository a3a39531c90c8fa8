"""Every error that the package raises on purpose. The message is one sentence for the user."""


class P2LError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback."""


class PromptError(P2LError):
    """A prompt that holds no text, or is not a string or a list of strings."""


class DataError(P2LError):
    """A file of votes, scores, prompts or prices that can't be used as it is."""


class ConfigError(P2LError):
    """A wrong key or value in a configuration file or option."""


class BundleError(P2LError):
    """A bundle or checkpoint that is incomplete, changed, or made for something else."""
