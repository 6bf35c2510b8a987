"""Runs the Gluon kernels' own source on the host: threads for warp groups, barriers with phases, products done late.

No card and no compiler: each kernel's Python functions are taken as they are and given other meanings of `gl`, `hopper`
and so on. What the hardware may do in any order is done here in an order drawn from a seed, one thing at a time: which
warp group goes on at a wait, and when a copy that was started arrives. The unfavourable is done where there is a
choice: a product reads its operands in shared memory only when it is waited for, so that a place of the ring given back
too early holds other numbers by then. Using a product that was not waited for, or where all wait for each other,
raises.

What it cannot show: registers, layouts, swizzles, and operands in registers that are overwritten under a product.
"""

from __future__ import annotations

import random
import threading
import types

import torch

from brine.kernels.attention.gluon import backward as gluon_backward
from brine.kernels.attention.gluon import forward as gluon_forward
from brine.kernels.attention.triton import forward as triton_kernels

SIZES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


class Deadlock(RuntimeError):
    """All wait, and nothing is on its way."""


class Machine:
    """Warp groups of one program, of which one runs at a time, and copies on their way."""

    def __init__(self, seed: int):
        self.draw, self.copies, self.groups, self.error = random.Random(seed), [], [], None
        self.back = threading.Semaphore(0)

    def run(self, functions: list) -> None:
        """Until all have ended. Raises what one of them raised, or Deadlock."""
        self.groups = [
            types.SimpleNamespace(ready=lambda: True, done=False, go=threading.Semaphore(0)) for _ in functions
        ]
        threads = [
            threading.Thread(target=self._body, args=(group, function), daemon=True)
            for group, function in zip(self.groups, functions, strict=True)
        ]
        for thread in threads:
            thread.start()
        while not all(group.done for group in self.groups):
            able = [group for group in self.groups if not group.done and (self.error or group.ready())]
            choice = self.draw.randrange(max(1, len(able) + len(self.copies)))
            if choice < len(able):
                able[choice].go.release()
                self.back.acquire()
            elif self.copies:
                self.copies.pop(choice - len(able))()
            else:
                self.error = Deadlock("every warp group waits, and no copy is on its way")
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def _body(self, group, function) -> None:
        group.go.acquire()
        thread = threading.current_thread()
        thread.group, thread.products, thread.written = group, [], []
        try:
            function()
        except BaseException as error:
            self.error = self.error or error
        group.done = True
        self.back.release()

    def until(self, ready) -> None:
        """Let others go on until ready() holds."""
        group = getattr(threading.current_thread(), "group", None)
        group.ready = ready
        self.back.release()
        group.go.acquire()
        if self.error:
            raise self.error


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes have."""

    def __init__(self):
        self.count = self.missing = self.bytes = self.phase = 0

    def arrive(self, more: int = 0) -> None:
        assert self.missing > 0, "more arrivals than the barrier counts"
        self.missing, self.bytes = self.missing - 1, self.bytes + more
        self.settle()

    def settle(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.phase, self.missing = self.phase + 1, self.count


class Product:
    """A product that was started."""

    def __init__(self, left, right, before):
        self.left, self.right, self.before, self.value = left, right, before, None

    def finish(self) -> None:
        left, right = (x.data if isinstance(x, Shared) else x for x in (self.left, self.right))
        before = self.before.value if isinstance(self.before, Product) else self.before
        self.value = before + left.float() @ right.float()


class Shared:
    """Shared memory, NaN until it is written."""

    def __init__(self, data, barriers=None):
        self.data, self.barriers, self.dtype = data, barriers, data.dtype

    def index(self, i):
        return self.barriers[int(i)] if self.barriers else Shared(self.data[int(i)])

    def reshape(self, shape):
        return Shared(self.data.view(shape))

    def permute(self, order):
        return Shared(self.data.permute(order))

    def load(self, layout):
        return self.data.clone()

    def store(self, value):
        # products see it only once it is fenced
        assert value.dtype == self.dtype
        self.data.fill_(float("nan"))
        threading.current_thread().written.append((self.data, value))


class Pointer:
    """An address, or a tensor of them."""

    def __init__(self, data, at=0):
        self.data, self.at = data, at
        self.dtype = types.SimpleNamespace(element_ty=data.dtype)

    def __add__(self, more):
        return Pointer(self.data, self.at + more)

    def load(self, mask, other):
        at = torch.as_tensor(self.at)
        flat = self.data.view(-1)
        if mask is None:
            return flat[at]
        return torch.where(mask, flat[torch.where(mask, at, 0)], other)

    def store(self, value, mask):
        self.data.view(-1)[self.at[mask]] = value[mask]

    def add(self, value, mask):
        assert value.dtype == self.data.dtype
        self.data.view(-1).index_add_(0, self.at[mask], value[mask])


class Described:
    """A tensor descriptor."""

    def __init__(self, made):
        self.made, self.dtype, self.layout = made, made.base.dtype, None
        size = SIZES[self.dtype]
        for n in made.block_shape:
            size *= n
        self.block_type = types.SimpleNamespace(nbytes=size)

    def tile(self, at):
        """The tile at these coordinates, zeros where there is nothing."""
        x = self.made.base.as_strided(self.made.shape, self.made.strides)
        tile = x.new_zeros(self.made.block_shape)
        ends = [min(n, a + m) for n, a, m in zip(self.made.shape, at, self.made.block_shape, strict=True)]
        if all(end > a for end, a in zip(ends, at, strict=True)):
            found = x[tuple(slice(a, end) for a, end in zip(at, ends, strict=True))]
            tile[tuple(slice(n) for n in found.shape)] = found
        return tile


class Emulated:
    """Stands in a kernel's place: the same launch, on the host."""

    def __init__(self, module, name: str, seed: int = 0):
        self.module, self.kernel, self.seed = module, getattr(module, name).fn, seed

    def __getitem__(self, grid):
        def launch(*args, num_warps: int, maxnreg: int, **sizes):
            given = [
                Pointer(x) if isinstance(x, torch.Tensor) else Described(x) if hasattr(x, "block_shape") else x
                for x in args
            ]
            for x in range(grid[0]):
                for y in range(grid[1]):
                    machine = Machine(hash((self.seed, x, y)))
                    found = meanings(self.module, machine, grid, (x, y))
                    plain(self.kernel, found)(*given, **sizes)

        return launch


def meanings(module, machine: Machine, grid: tuple, place: tuple) -> dict:
    """The module's globals for one program, every device function among them made a plain one."""

    def allocate(dtype, shape, layout):
        if dtype is torch.int64:
            return Shared(torch.zeros(shape), [Barrier() for _ in range(shape[0])])
        return Shared(torch.full(tuple(int(n) for n in shape), float("nan"), dtype=dtype))

    def where(condition, yes, no):
        return torch.where(condition, yes, no) if isinstance(condition, torch.Tensor) else yes if condition else no

    def both(function):
        return lambda a, b: function(torch.as_tensor(a), torch.as_tensor(b))

    def nothing(*args, **kwargs):
        return None

    def fence():
        for data, value in getattr(threading.current_thread(), "written", []):
            data.copy_(value)
        threading.current_thread().written = []

    gl = types.SimpleNamespace(
        float32=torch.float32, int64=torch.int64, constexpr=object, static_range=range, where=where,
        program_id=lambda axis: torch.tensor(place[axis]), num_programs=lambda axis: grid[axis],
        minimum=both(torch.minimum), maximum=both(torch.maximum), exp2=torch.exp2, log2=torch.log2,
        max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), cdiv=lambda a, b: -(-a // b),
        arange=lambda start, end, layout=None: torch.arange(start, end),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        convert_layout=lambda x, layout: x, allocate_shared_memory=allocate,
        load=lambda p, mask=None, other=0: p.load(mask, other), store=lambda p, x, mask: p.store(x, mask),
        atomic_add=lambda p, x, mask, sem, scope: p.add(x, mask), NVMMASharedLayout=nothing,
        SliceLayout=nothing, NVMMADistributedLayout=nothing, DotOperandLayout=nothing,
        warp_specialize=lambda parts, warps, registers: machine.run([lambda f=f, a=a: f(*a) for f, a in parts]),
    )  # fmt: skip

    def start(left, right, before, use_acc=True, is_async=False):
        product = Product(left, right, before)
        threading.current_thread().products.append(product)
        return product

    def wait_for_products(left, deps):
        machine.until(lambda: True)
        products = threading.current_thread().products
        for product in products[: len(products) - left]:
            product.finish()
        del products[: len(products) - left]
        found = [x.value if isinstance(x, Product) else x for x in deps]
        assert all(x is not None for x in found), "a product is used that was not waited for"
        return found[0] if len(found) == 1 else found

    def init(barrier, count):
        barrier.count = barrier.missing = count

    def copy(described, at, barrier, shared):
        def arrives():
            shared.data.copy_(described.tile(at))
            barrier.bytes -= described.block_type.nbytes
            barrier.settle()

        at = [int(a) for a in at]
        machine.copies.append(arrives)

    hopper = types.SimpleNamespace(
        warpgroup_mma=start, warpgroup_mma_wait=wait_for_products, fence_async_shared=fence
    )  # fmt: skip
    mbarrier = types.SimpleNamespace(
        init=init, expect=lambda barrier, size: barrier.arrive(size), arrive=lambda barrier: barrier.arrive(),
        wait=lambda barrier, parity: machine.until(lambda: barrier.phase % 2 != int(parity)), MBarrierLayout=nothing,
    )  # fmt: skip
    found = {"gl": gl, "tl": gl, "hopper": hopper, "mbarrier": mbarrier, "copy_tile": copy}
    found |= {"LOG2E": gluon_forward.LOG2E.value, "LN2": gluon_forward.LN2.value, "__builtins__": __builtins__}
    for owner in (triton_kernels, gluon_forward, gluon_backward, module):
        for name, function in vars(owner).items():
            if hasattr(function, "fn") and name not in ("copy_tile",):
                found[name] = plain(function.fn, found)
    return found


def plain(function, found: dict):
    """The function with these globals."""
    return types.FunctionType(function.__code__, found, function.__name__, function.__defaults__)
