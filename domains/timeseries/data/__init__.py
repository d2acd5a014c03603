"""Tables in, GluonTS entries out: reading, checking and splitting time series.

A file is either *wide* (one series; each target column is a channel) or *long* (one more column, `item_id`, tells the
series apart). Whatever cannot be used raises a `UserError` that names the file, the column, the line and the mend.

    files.py      what is in a file as it stands
    columns.py    what its columns hold, and what each of them is for
    grid.py       the regular grid of time steps
    table.py      the checked series, and GluonTS entries of them
    read.py       `read_table`: the four together
    tsf.py        Monash's .tsf
    mapped.py     a Parquet larger than memory
    splits.py     what is held out
"""

from domains.timeseries.data.grid import quiet_pandas
from domains.timeseries.data.mapped import MappedTable, Table, map_table
from domains.timeseries.data.read import EXAMPLES, Missing, load_example, read_table
from domains.timeseries.data.splits import check_calibration, check_contexts, check_length, held_out_steps, split
from domains.timeseries.data.table import Roles, SeriesTable

__all__ = [
    "EXAMPLES",
    "MappedTable",
    "Missing",
    "Roles",
    "SeriesTable",
    "Table",
    "check_calibration",
    "check_contexts",
    "check_length",
    "held_out_steps",
    "load_example",
    "map_table",
    "quiet_pandas",
    "read_table",
    "split",
]
