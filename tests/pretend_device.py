"""A device in Python for tests: it computes on the CPU and refuses operands of another device.

`install` registers ``npu`` with torch's interface for backends written in Python (experimental;
used with torch 2.13), so it belongs in a process of its own. What forgets a ``.to(device)`` fails
here as on a GPU. Autograd works; ``out=`` arguments that change size do not.
"""

from collections import Counter

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "npu"
# operations of both devices, by name: their share shows that the work was done on the device
ON_DEVICE: Counter[str] = Counter()
ELSEWHERE: Counter[str] = Counter()
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


class CountElsewhere(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations of tensors that lie on the CPU."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, DeviceTensor) for leaf in leaves):
            ELSEWHERE[_name(operation)] += 1
        return operation(*args, **(kwargs or {}))


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
    ON_DEVICE[name] += 1
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
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
