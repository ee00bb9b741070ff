"""Rows to calibrate on and rows to measure with, read from the files that people have.

Rules:

1. The ending of the name tells the format. ``.csv`` is RFC 4180 in UTF-8. ``.tsv`` is one row a
   line, a cell may be quoted. ``.jsonl``, ``.ndjson`` and ``.json`` hold one object a line.
   ``.parquet`` may hold list columns. ``.npz`` holds images and labels, or the arrays that a plain
   module takes, by input name. A folder holds one folder of pictures for each class. For
   token classification all other endings are CoNLL.
2. What is no path is the name of a hub data set, as ``name``, ``name:config`` or
   ``name:config@split``. ``--data`` reads its ``train`` split, ``--eval`` its ``validation``
   split, or ``test`` where there is no validation.
3. A column is one that the caller named, or else one whose name is usual for its role. Numbers
   name the columns of a CSV or TSV file without a header line, counted from 0.
4. The labels of a multi-label row are a list, or one cell with ``|`` between them (an empty cell:
   none of the labels). Labels are names, or class ids where every one of them is an id.
5. Training rows serve calibration and vocabulary, eval rows serve the figures. Without eval rows,
   a tenth of the training rows (at most 2,000) is set aside for them, every label with its share.
6. Rows of ``--unlabeled`` are for a teacher to answer: labels in them are not looked at. Beside
   the formats above, ``.txt`` holds one text a line. Those that stand in the eval rows are left
   out, and so are those that stand in the training rows or came before.
"""

from edgekit.data.labels import label_ids
from edgekit.data.load import identify_data, load_data
from edgekit.data.rows import Columns, Data, Rows, apart, together

__all__ = [
    "Columns",
    "Data",
    "Rows",
    "apart",
    "identify_data",
    "label_ids",
    "load_data",
    "together",
]
