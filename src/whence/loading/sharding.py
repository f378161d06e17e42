"""A model's parameters spread over the processes of a launcher (FSDP2): for models beyond one GPU.

The blocks of the model are gathered one at a time, used and let go again, in the forward pass and in the backward
pass. Hooks on layers therefore see what they would see on one device; ``gradients.ranks`` divides the batches.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from whence.errors import ModelError, OptionError
from whence.gradients.ranks import Ranks
from whence.launch import for_torch
from whence.loading.places import pick_device

# How long ranks wait while one works alone: it writes files, or reads them all to see whether they are whole. A rank
# that dies is noticed at once, by the launcher; the time is for one that hangs.
ALONE = timedelta(hours=2)


def join_ranks(device: str = "auto") -> Ranks:
    """This process among those that its launcher started; the first call sets the process group up.

    Raises:
        OptionError: a process that no launcher started, or a device that cannot be shared.
    """
    kind = torch.device(pick_device(device)).type
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"fsdp on {kind}", wanted="CUDA GPUs, or cpu", try_="--device cpu")
    if not dist.is_initialized():
        os.environ |= for_torch(os.environ)
    place = torch.device(kind)
    if kind == "cuda":  # of those that the launcher lets this process see
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        # torchrun keeps one store over its restarts: addresses of those that died must not be found in it
        fresh = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=world)
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size(), place, _words(dist.group.WORLD))


@lru_cache(maxsize=1)
def _words(_among: object) -> dist.ProcessGroup | None:
    """One group for JSON beside the usual one, however often a process joins."""
    group = dist.new_group(backend="gloo", timeout=ALONE)
    return group if isinstance(group, dist.ProcessGroup) else None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def spread(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model with every block's parameters sharded over the ranks, on their devices; itself, changed in place.

    Parameters no longer require gradients: attribution needs none of them.

    Raises:
        ModelError: parameters that are not numbers to shard (quantised weights).
    """
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return model  # the user sharded it
    odd = next((n for n, p in model.named_parameters() if not p.is_floating_point()), None)
    if odd is not None:
        raise ModelError(
            f"{odd} holds quantised weights", wanted="float parameters to shard", try_="fsdp without 4 or 8 bit"
        )
    model.requires_grad_(False)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost ``nn.ModuleList``s: how every transformer stacks its blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)
