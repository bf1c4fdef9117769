"""Whole values of the parameters that ZeRO stage 3 partitions over the ranks."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

GATHERED_AT_ONCE = 50_000_000  # elements that are whole at a time


def is_sharded(parameter: Tensor) -> bool:
    """Tell whether ZeRO stage 3 partitions a parameter; DeepSpeed marks those by `ds_id`."""
    return hasattr(parameter, "ds_id")


def count_elements(parameter: Tensor) -> int:
    """Return a parameter's number of elements over all ranks."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def iter_whole(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the whole value of each parameter; a value is valid until the next one is taken.

    Gathering sharded parameters is a collective: every rank must take all of them, in the same order.
    """
    for group in _group(named):
        if not is_sharded(group[0][1]):
            yield from ((name, parameter.detach()) for name, parameter in group)
            continue
        from deepspeed.runtime.zero import GatheredParameters  # stages 0 to 2, and plain torch, do without

        with GatheredParameters([parameter for _, parameter in group]):
            yield from ((name, parameter.detach()) for name, parameter in group)


def _group(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Yield neighbours in groups of at most GATHERED_AT_ONCE elements, or of one larger parameter."""
    group: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        size += count_elements(parameter)
        if group and size > GATHERED_AT_ONCE:
            yield group
            group, size = [], count_elements(parameter)
        group.append((name, parameter))
    if group:
        yield group
