"""A device in Python for tests: it computes on the CPU and refuses operands of another device.

`install` registers ``npu`` with torch's interface for backends written in Python (experimental;
used with torch 2.13), so it belongs in a process of its own. What forgets a ``.to(device)`` fails
here as on a GPU. Autograd works; ``out=`` arguments that change size do not.
"""

from collections import Counter, defaultdict
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "npu"
# what the processor waits for on a GPU, beside copies to it: it needs the values
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
# copies between devices, and indices on the CPU, are allowed on a GPU as well
_CROSSING = {"_to_copy", "copy_", "index", "index_put_", "_index_put_impl_"}
_MAKERS = ["tensor", "as_tensor", "arange", "linspace", "logspace", "eye", "full"]
_MAKERS += ["rand", "randn", "randint", "randperm"]
_registered = []  # the library's lifetime is that of its registrations


class DeviceTensor(torch.Tensor):
    """Says that it lies on the device, and wraps the tensor on the CPU that holds its values."""

    @staticmethod
    def __new__(cls, values):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )
        wrapper.values_on_cpu = values
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    def tolist(self):
        return self.values_on_cpu.tolist()


class CountWork(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts by stage what runs on the device and what on the CPU.

    Attributes:
        calls: device type → operations by name.
        elements: stage → device type → elements of the tensors that operations read and write.
            Views and copies between devices touch nothing.
        waits: stage → operations by name for which the processor waits for the device.
    """

    def __init__(self):
        super().__init__()
        self._stage = "other"
        self.calls = defaultdict(Counter)
        self.elements = defaultdict(Counter)
        self.waits = defaultdict(Counter)

    @contextmanager
    def stage(self, name):
        outer, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = outer

    def share(self, stage):
        """Share of a stage's elements that are processed on the device."""
        work = self.elements[stage]
        return work[NAME] / max(1, work.total())

    def table(self):
        """A line for each stage."""
        return "\n".join(
            f"{stage}: {self.share(stage):.1%} of {work.total() / 1e6:.1f} million elements on the "
            f"device, {self.waits[stage].total()} waits {dict(self.waits[stage].most_common(3))}"
            for stage, work in self.elements.items()
        )

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given, made = (_tensors(x) for x in ((args, kwargs), result))
        there = [isinstance(x, DeviceTensor) for x in (*given, *made)]
        device, name = NAME if any(there) else "cpu", _name(operation)
        self.calls[device][name] += 1
        crosses = name in ("_to_copy", "copy_") and len(set(there)) > 1
        if crosses and not isinstance((made or given)[0], DeviceTensor):
            self.waits[self._stage]["copy"] += 1
        elif any(there) and (name in _WAITS or (name in _CROSSING and _by_mask(given))):
            self.waits[self._stage][name] += 1
        if not crosses and not _is_view(operation):
            self.elements[self._stage][device] += sum(x.numel() for x in (*given, *made))
        return result


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _by_mask(tensors):
    """Whether an index among the operands is a mask, whose size decides that of the result."""
    return any(x.dtype == torch.bool for x in tensors[1:])


def _is_view(operation):
    returns = operation._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def install():
    """Register the device, once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: _compute(op, args, kwargs), "PrivateUse1")
    _registered.append(library)
    for name in _MAKERS:
        setattr(torch, name, _made_on_cpu_first(getattr(torch, name)))


def _made_on_cpu_first(make):
    """Some factories never reach the fallback: make the tensor on the CPU, then move it."""

    def made(*args, device=None, **kwargs):
        if device is None or torch.device(device).type != NAME:
            return make(*args, **kwargs, **({} if device is None else {"device": device}))
        source = args[0] if args else None
        if isinstance(source, DeviceTensor):
            return source.to(kwargs.get("dtype") or source.dtype)
        return make(*args, **kwargs).to(device)

    return made


def _name(operation):
    return getattr(operation, "overloadpacket", operation).__name__


def _compute(operation, args, kwargs):
    """Run one operation on the wrapped values, and wrap what comes out."""
    name = _name(operation)
    tensors = _tensors((args, kwargs))
    own = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    # as on a GPU, a scalar of the CPU may enter any operation
    foreign = [x for x in tensors if not isinstance(x, DeviceTensor) and x.ndim > 0]
    if own and foreign and name not in _CROSSING:
        raise RuntimeError(f"{name}: expected all tensors on one device, got {NAME}:0 and cpu")
    target = kwargs.get("device")
    settings = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if target is not None:
        settings["device"] = torch.device("cpu")
    result = operation(*tree_map(_unwrapped, args), **tree_map(_unwrapped, settings))
    if name.endswith("_") and not name.startswith("_"):
        return args[0]  # in place
    if target is not None and torch.device(target).type == "cpu":
        return result
    return tree_map(_wrapped, result)


def _unwrapped(value):
    return value.values_on_cpu if isinstance(value, DeviceTensor) else value


def _wrapped(value):
    plain = isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor)
    return DeviceTensor(value) if plain else value
