"""data.pkl of a torch.save archive -> which storage holds which tensor, and how DTensors were sharded.

Stricter than `torch.load(weights_only=True)`, and without torch: that one still calls the constructors it allows, here
nothing is called at all (see `pickle_machine`). Only what a state dict of plain tensors and DTensors needs is known; a
pickle that names anything else, for example FSDP1's ShardedTensor, is refused by that name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relex_core.checkpoints.pickle_machine import Name, Record, RefusedPickle, Vocabulary, interpret
from relex_core.checkpoints.safetensors_file import MAX_DIMENSIONS

# Some 500 bytes a tensor: 30 thousand tensors.
MAX_PICKLE_BYTES = 16 * 2**20

STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

# The private name is that of torch before 2.5.
HOMES = ("torch.distributed.tensor", "torch.distributed._tensor")
DTENSOR = frozenset(f"{home}{module}.DTensor" for home in HOMES for module in ("", ".api", "._api"))
RECORDS = frozenset(
    [f"{home}.placement_types.{kind}" for home in HOMES for kind in ("Shard", "_StridedShard", "Replicate", "Partial")]
    + [f"{home}._dtensor_spec.{kind}" for home in HOMES for kind in ("DTensorSpec", "TensorMeta", "ShardOrderEntry")]
    + ["torch.distributed.device_mesh.DeviceMesh"]
    + [f"torch.distributed._mesh_layout.{kind}" for kind in ("_MeshLayout", "_FlatLayout")]
)
WRAPPER = "torch._utils._rebuild_wrapper_subclass"


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage, as its tensors refer to it."""

    dtype: str
    """As safetensors spells it."""
    key: str
    """Its member is data/KEY."""
    numel: int


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """A view into a storage."""

    storage: Storage
    offset: int
    """Elements from the storage's start."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie side by side in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size not in (0, 1) and stride != expected:
                return math.prod(self.shape) == 0
            expected *= size
        return True


@dataclass(frozen=True, slots=True)
class Placement:
    """How one dimension of the device mesh divides a tensor."""

    kind: str
    """Shard, Replicate, Partial, _StridedShard."""
    dim: int | None
    """Of the tensor; None where nothing is divided."""

    def __str__(self) -> str:
        return self.kind if self.dim is None else f"{self.kind}(dim={self.dim})"


@dataclass(frozen=True, slots=True)
class DistributedTensor:
    """One rank's share of a DTensor."""

    local: LocalTensor
    shape: tuple[int, ...]
    """Of the whole tensor."""
    placements: tuple[Placement, ...]
    """One for each dimension of the device mesh."""
    coordinate: tuple[int, ...] | None
    """Of this rank in the device mesh, where torch stored it."""


def read_index(data: bytes) -> dict[str, LocalTensor | DistributedTensor]:
    """The tensors of a pickled state dict, by name, in its order.

    Raises:
        RefusedPickle: it is damaged, or holds anything but tensors.
    """
    state = interpret(data, VOCABULARY)
    if type(state) is not dict:
        raise RefusedPickle("it is no state dict")
    for name, value in state.items():
        if type(value) not in (LocalTensor, DistributedTensor):
            raise RefusedPickle(f"entry {name[:100]!r} is no tensor")
    return state


def _storage(identity: Any) -> Storage:
    kind, name, key, _, numel = _tuple(identity, 5, "a persistent id")
    dtype = STORAGES.get(name.name) if type(name) is Name else None
    if kind != "storage" or dtype is None or type(key) is not str:
        raise RefusedPickle("a persistent id is no storage")
    return Storage(dtype, key, _sizes((numel,))[0])


def _tensor(arguments: tuple[Any, ...]) -> LocalTensor:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, [metadata])"""
    if len(arguments) not in (6, 7) or type(arguments[0]) is not Storage:
        raise RefusedPickle("a tensor has no storage")
    shape, stride = _sizes(arguments[2]), _sizes(arguments[3])
    if len(shape) != len(stride):
        raise RefusedPickle("a tensor's shape and stride have different lengths")
    return LocalTensor(arguments[0], _sizes((arguments[1],))[0], shape, stride)


def _from_type(arguments: tuple[Any, ...]) -> LocalTensor | DistributedTensor:
    """_rebuild_from_type_v2(function, type, arguments, state): a DTensor, or a tensor with attributes of its own."""
    function, kind, inner, state = _tuple(arguments, 4, "a tensor with a type")
    if type(function) is not Name or type(kind) is not Name or type(inner) is not tuple:
        raise RefusedPickle("a tensor with a type is malformed")
    if function.name == "torch._utils._rebuild_tensor_v2":
        return _tensor(inner)
    if function.name != WRAPPER or kind.name not in DTENSOR:
        raise RefusedPickle(f"a tensor is a {kind.name[:100]}")
    # A wrapper's arguments: (type, dtype, size, stride, ...); its state: (attributes or None, slots).
    attributes = state if type(state) is dict else _tuple(state, 2, "a DTensor's state")[1]
    local, spec = (attributes.get(name) for name in ("_local_tensor", "_spec")) if type(attributes) is dict else (0, 0)
    if type(local) is not LocalTensor or type(spec) is not Record or len(inner) < 3:
        raise RefusedPickle("a DTensor has no local tensor or no specification")
    placements = spec.state.get("placements")
    if type(placements) is not tuple:
        raise RefusedPickle("a DTensor has no placements")
    mesh = spec.state.get("mesh")
    coordinate = mesh.state.get("_coordinate_on_dim") if type(mesh) is Record else None
    return DistributedTensor(
        local,
        _sizes(inner[2]),
        tuple(map(_placement, placements)),
        None if coordinate is None else _sizes(tuple(coordinate)),
    )


def _placement(value: Any) -> Placement:
    kind = value.of.rpartition(".") if type(value) is Record else ("", "", "")
    if not kind[0].endswith("placement_types"):
        raise RefusedPickle("a placement is none")
    dim = value.state.get("dim", value.arguments[0] if value.arguments else None)
    if kind[2] in ("Replicate", "Partial"):
        return Placement(kind[2], None)
    return Placement(kind[2], _sizes((dim,))[0])


def _tuple(value: Any, length: int, what: str) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != length:
        raise RefusedPickle(f"{what} is malformed")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets, none negative, none beyond what a file can have."""
    if type(values) is not tuple or len(values) > MAX_DIMENSIONS:
        raise RefusedPickle("sizes are no short tuple")
    if not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise RefusedPickle("a size is negative, too large, or no integer")
    return values


def _nothing(arguments: tuple[Any, ...]) -> None:
    """The meaning of a device or a memory layout."""


def _calls() -> Mapping[str, Any]:
    return {
        "collections.OrderedDict": lambda arguments: dict(_tuple(arguments, 0, "an OrderedDict")),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda arguments: _tuple(arguments, 3, "a parameter")[0],
        "torch._tensor._rebuild_from_type_v2": _from_type,
        "torch.serialization._get_layout": _nothing,
        "torch.device": _nothing,
        "torch.Size": lambda arguments: _sizes(_tuple(arguments, 1, "a size")[0]),
    }


VOCABULARY = Vocabulary(
    calls=_calls(),
    records=RECORDS,
    names=frozenset([WRAPPER, *DTENSOR, *STORAGES, *(f"torch.{dtype}" for dtype in DTYPES)]),
    storage=_storage,
)
