"""What edgekit says when something is wrong: one sentence with what, where and the mend.

The class decides the exit code, nothing else: 1 a budget or proof failed, 2 wrong usage
or input, 3 inconclusive. Anything that is not an ``EdgekitError`` is a bug of ours (4).
"""


class EdgekitError(Exception):
    """Base of every error that a person can mend; ``str(error)`` is one sentence."""

    exit_code = 2


class UsageError(EdgekitError):
    """A flag or a setting that cannot be."""


class ProjectError(EdgekitError):
    """An ``edgekit.toml`` that cannot be read as one."""


class TargetError(EdgekitError):
    """A target that does not exist, or a malformed ``target.toml``."""


class ModelError(EdgekitError):
    """A checkpoint or a model file that cannot be read, or is of a kind we do not know."""


class DataError(EdgekitError):
    """A data file that cannot be read, or does not fit the model."""


class RecipeError(EdgekitError):
    """A step that does not exist, or cannot be applied to this model."""


class TrainingError(EdgekitError):
    """A training that cannot begin, or that diverged with nothing to keep."""


class ExportError(EdgekitError):
    """A model that cannot be written in the format asked for."""


class OutputError(EdgekitError):
    """An output folder or cache that cannot be written."""


class BundleError(EdgekitError):
    """A bundle that is damaged, or is no bundle."""


class BaselineError(EdgekitError):
    """A baseline that is missing, outdated or damaged, or that proves nothing."""


class BudgetError(EdgekitError):
    """Nothing that we can do fits the budget."""

    exit_code = 1


class ProofError(EdgekitError):
    """The file does not do what the original model does."""

    exit_code = 1


class DeviceError(EdgekitError):
    """The device did not finish: crashed, timed out, or lacks the runtime."""

    exit_code = 3
