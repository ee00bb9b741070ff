"""Where a key of a TOML file stands."""

import pytest

from edgekit.toml import find_line

TEXT = """\
# max = 1
model = "x"
text-pair = "b"
text = "a"
[gate]
ops.max = 3
[gate.download-bytes]
max = "1MB"
"growth" = "1% and 1B"
[gate.macs]
max = 1
inline = { max = 3, min = 4 }
[[gate.waivers]]
rule = "a"
[[gate.waivers]]
rule = "b"
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["model"], 2),
        (["text"], 4),
        (["gate"], 5),
        (["gate", "ops", "max"], 6),
        (["gate", "download-bytes"], 7),
        (["gate", "download-bytes", "max"], 8),
        (["gate", "download-bytes", "growth"], 9),
        (["gate", "macs", "max"], 11),
        (["gate", "inline", "min"], 12),
        (["gate", "waivers", 0, "rule"], 14),
        (["gate", "waivers", 1], 15),
        (["gate", "waivers", 1, "rule"], 16),
        (["nothing"], None),
        ([], None),
    ],
)
def test_a_key_is_found_behind_the_one_before_it(keys: list[str | int], line: int | None) -> None:
    assert find_line(TEXT, keys) == line
