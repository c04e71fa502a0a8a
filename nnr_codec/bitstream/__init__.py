"""The NNR bitstream: its units, and the syntax of all that they hold but the arithmetic codewords.

* :mod:`.bits`: a bounded bit reader and a bit writer for the format's descriptors;
* :mod:`.codes`, :mod:`.records`: enumerations and dataclasses with the standard's element names;
* :mod:`.visitors`: reading, writing and listing, over structures that :mod:`.syntax` and
  :mod:`.data_unit` declare once each;
* :mod:`.units`: cutting a bitstream into units, and writing them;
* :mod:`.stream_parser`: units in their context; :mod:`.parsing`: all of them, or what is wanted.

>>> from nnr_codec.bitstream import *
>>> stream = write_record(StartUnit()) + write_record(ModelParameterSet())
>>> stream.hex(" ")
'00 04 02 00 00 08 06 81 00 40 00 80'
>>> [parsed.unit.label for parsed in parse_units(stream)]
['unit 0 (NNR_STR)', 'unit 1 (NNR_MPS)']
"""

from .codes import (
    CompressionFormat,
    DataFormat,
    ParameterTypes,
    ParentType,
    PayloadType,
    TopologyFormat,
)
from .context import Context
from .data_unit import entry_point_count
from .parsed_unit import ParsedUnit
from .parsing import parse_units
from .records import (
    Codebook,
    DataUnit,
    EntryPoint,
    LayerParameterSet,
    ModelParameterSet,
    NodeId,
    Parent,
    PruningEntry,
    QuantizationData,
    SparsificationEntry,
    StartUnit,
    Topology,
)
from .units import (
    read_units,
    unit_start,
    write_data_unit,
    write_record,
    write_unit,
)
from .visitors import Element

__all__ = [
    "Codebook",
    "CompressionFormat",
    "Context",
    "DataFormat",
    "DataUnit",
    "Element",
    "EntryPoint",
    "LayerParameterSet",
    "ModelParameterSet",
    "NodeId",
    "ParameterTypes",
    "Parent",
    "ParentType",
    "ParsedUnit",
    "PayloadType",
    "PruningEntry",
    "QuantizationData",
    "SparsificationEntry",
    "StartUnit",
    "Topology",
    "TopologyFormat",
    "entry_point_count",
    "parse_units",
    "read_units",
    "unit_start",
    "write_data_unit",
    "write_record",
    "write_unit",
]
