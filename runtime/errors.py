"""The errors this package raises for bad input.

Every message names the file, the field, what was found and what was expected. The command line prints the
message and exits with status 2; a Python traceback always means a bug of ours.
"""


class StyleInVError(Exception):
    """Base of every error caused by input, files or the machine."""


class ConfigError(StyleInVError):
    """A configuration holds an unknown field, a wrong type or a value out of range."""


class CheckpointError(StyleInVError):
    """A checkpoint cannot be read, or is not what it should be."""


class BundleError(StyleInVError):
    """A bundle is damaged, incomplete, of a newer format, or of the wrong kind."""


class EngineError(StyleInVError):
    """A session or an engine that was asked for cannot be had on this machine."""


class DataError(StyleInVError):
    """A clip, a picture or a folder of them cannot be used."""


class TrainingError(StyleInVError):
    """Training cannot go on, for example because a loss is not finite."""
