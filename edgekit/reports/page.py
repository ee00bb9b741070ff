"""One page of HTML: everything in one file, nothing from the network.

Rules:

1. Text that comes from a bundle is escaped where it is written, without exception; characters
   that no page may hold become U+FFFD, and each piece is apart from its neighbours' direction.
2. The page forbids itself every address: its policy allows its own style and its one script.
3. A section without data says in one line which command would find them.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.reports import charts, commands, view
from edgekit.reports.subject import Subject, SubjectFile
from edgekit.units import format_bytes, format_percent, format_seconds

_HERE = Path(__file__).parent
# What an HTML page may not hold.
_ILLEGAL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CLIP = 90
# Calls below which a profile is said to be of few.
_FEW_CALLS = 10
# Width and height of a treemap, so that its letters can be read on a phone.
_TREEMAP = (460, 400)


def render_page(subjects: Sequence[Subject]) -> str:
    """The page of these bundles. Raises ModelError for a model file that is damaged."""
    import jinja2
    from markupsafe import Markup

    script = (_HERE / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(
        autoescape=True,
        loader=loader,
        finalize=_legal,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "percent": format_percent,
        "clip": clip,
    }
    return environment.get_template("page.html.j2").render(
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        svg=Markup,
        version=__version__,
        view=view,
        commands=commands,
        charts=charts,
        treemap=_treemap,
        subjects=subjects,
        title=view.title(subjects),
        few_calls=_FEW_CALLS,
        **_together(subjects),
    )


def names(subjects: Sequence[Subject]) -> list[str]:
    """A name for each file of all bundles: its target's, with the folder where two are alike."""
    files = [file for subject in subjects for file in subject.files]
    return _apart([file.name for file in files], [file.subject for file in files])


def _apart(plain: Sequence[str], subjects: Sequence[Subject]) -> list[str]:
    return [
        name if plain.count(name) == 1 else f"{subject.folder.parent.name}/{name}"
        for name, subject in zip(plain, subjects)
    ]


def clip(text: str, most: int = _CLIP) -> str:
    """The beginning of a long text, on one line."""
    text = " ".join(text.split()) if text.strip() else text
    return text if len(text) <= most else text[: most - 1] + "…"


def _together(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What is said of several files at once: scores, and the front of size and quality."""
    files = [file for subject in subjects for file in subject.files]
    called = {id(file.model): name for file, name in zip(files, names(subjects))}
    scores, staged, fronts = [], [], []
    for plan in view.plans(subjects):
        same = [file for subject in plan for file in subject.files]
        count, rows = view.stage_rows(same, [called[id(file.model)] for file in same])
        if rows:
            staged.append((view.name_of(view.primary(plan[0])), count, rows))
    for group in view.groups(subjects):
        mine = [called[id(file.model)] for file in group]
        labels, found = view.intervals(group, mine)
        picture = charts.score_chart(labels, found, "accuracy, with its interval") if found else ""
        scores.append((view.metrics(group[0].subject), view.score_rows(group, mine), picture))
        if len(group) > 1:
            what, points, front = view.pareto(group)
            fronts.append((what, charts.pareto_chart(mine, points, front, f"size and {what}")))
    return {
        "scores": scores,
        "staged": staged,
        "fronts": fronts,
        "named": list(zip(names(subjects), files)),
        "titled": list(zip(_apart([s.manifest.target for s in subjects], subjects), subjects)),
    }


def _treemap(file: SubjectFile) -> tuple[str, dict[str, str]]:
    """Where the file's bytes are, and how many of each kind; raises ModelError when damaged."""
    from edgekit.bundle.verify import artifacts
    from edgekit.contents.attribution import attribute
    from edgekit.contents.treemap import treemap

    subject = file.subject
    found = artifacts(subject.folder, subject.manifest)
    path = next(each.path for each in found if each.path.name == file.model.file)
    attribution, (width, height) = attribute(path), _TREEMAP
    kinds = {
        kind: f"{format_bytes(count)} ({format_percent(count / attribution.bytes, 1)})"
        for kind, count in attribution.by_kind().items()
    }
    return treemap(attribution, width=width, height=height, keyed=False), kinds


def _legal(value: Any) -> Any:
    """Text without what no page may hold; markup of our own stays."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _ILLEGAL.sub("\ufffd", value)
    return value
