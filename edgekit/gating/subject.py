"""One rule looking at one bundle or file, beside the baseline's, and what came of it."""

from dataclasses import dataclass
from typing import Any, Literal

from edgekit.budget import Outcome
from edgekit.errors import BaselineError, BundleError
from edgekit.gating.figures import BundleFigures, FileFigures
from edgekit.gating.rules import Rule

Judged = Literal["pass", "fail", "inconclusive", "waived"]


@dataclass(frozen=True)
class Finding:
    """One rule on one bundle, or on one of its files.

    before, now, change: as people read them, empty where there is nothing. value, base: the same
    as numbers, in bytes, seconds, counts or fractions. reason: one sentence. line: of the rule.
    """

    target: str
    file: str | None
    rule: str
    outcome: Judged
    limit: str
    reason: str
    before: str = ""
    now: str = ""
    change: str = ""
    value: float | None = None
    base: float | None = None
    line: int | None = None

    @property
    def where(self) -> str:
        return self.target if self.file is None else f"{self.target} {self.file}"

    def to_json(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Subject:
    """What one rule looks at."""

    target: str
    file: str | None
    rule: Rule
    bundle: BundleFigures
    before: BundleFigures | None

    @property
    def where(self) -> str:
        """For the beginning of a sentence."""
        return f"{self.target}, {self.file or 'the bundle'}: {self.rule.figure.name}"

    @property
    def now_file(self) -> FileFigures | None:
        return None if self.file is None else self.bundle.files[self.file]

    @property
    def before_file(self) -> FileFigures | None:
        return None if self.file is None else self._known().files[self.file]

    @property
    def value(self) -> float:
        found = self.rule.figure.read(self.bundle, self.now_file)
        if found is None:
            raise BundleError(f"{self.where} is not recorded in the bundle; {self._mend()}")
        return found

    @property
    def base(self) -> float:
        found = self.rule.figure.read(self._known(), self.before_file)
        if found is None:
            raise BaselineError(
                f"{self.where} is not recorded in the baseline; build what it was made of again, "
                "and write it anew with: edgekit gate --update"
            )
        return found

    def finding(self, outcome: Outcome, reason: str, **shown: Any) -> Finding:
        rule = self.rule
        reason = f"{rule.figure.name} {reason}"
        return Finding(
            self.target, self.file, rule.name, outcome, rule.text(), reason, **shown, line=rule.line
        )

    def _known(self) -> BundleFigures:
        """The target in the baseline, of the same model and with the same file."""
        before = self.before
        if before is None:
            raise BaselineError(
                f"the baseline does not know {self.target}; add it with: edgekit gate --update"
            )
        if (before.model, before.task) != (self.bundle.model, self.bundle.task):
            raise BaselineError(
                f"{self.target}: the baseline is of {before.model} ({before.task}), the bundle of "
                f"{self.bundle.model} ({self.bundle.task}); name another --baseline, or write it "
                "anew with: edgekit gate --update"
            )
        if self.file is not None and self.file not in before.files:
            raise BaselineError(
                f"the baseline knows no {self.file} of {self.target}; add it with: edgekit gate "
                "--update"
            )
        return before

    def _mend(self) -> str:
        return {
            "accuracy": "build it with labelled --eval rows",
            "delegated-ops": "build it with a device that delegates, as android-gpu does",
        }.get(self.rule.figure.name, "build it again, or drop the rule where the format has none")
