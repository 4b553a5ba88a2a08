"""The engines' pixel memory: used again when nobody holds it, never before."""

from __future__ import annotations

import gc

from fastvicreg.pipelines.engines.memory import KEPT, PixelMemory

SHAPE = (4, 2, 8, 8, 3)


def test_memory_is_used_again_once_the_tensor_is_gone() -> None:
    memory = PixelMemory(pin=False)
    first = memory.take(SHAPE)
    where = first.data_ptr()
    del first
    assert memory.take(SHAPE).data_ptr() == where


def test_memory_held_by_a_view_or_an_array_is_left_alone() -> None:
    memory = PixelMemory(pin=False)
    pixels = memory.take(SHAPE)
    pixels.fill_(7)
    held = [pixels[1], pixels[2].numpy()]
    del pixels
    gc.collect()
    memory.take(SHAPE).fill_(9)
    assert (held[0] == 7).all()
    assert (held[1] == 7).all()


def test_a_batch_of_another_shape_gets_memory_of_its_size() -> None:
    memory = PixelMemory(pin=False)
    memory.take(SHAPE)
    assert memory.take((3, 2, 8, 8, 3)).shape == (3, 2, 8, 8, 3)
    assert memory.take(SHAPE).shape == SHAPE


def test_no_more_than_a_few_buffers_are_kept() -> None:
    memory = PixelMemory(pin=False)
    many = [memory.take(SHAPE) for _ in range(2 * KEPT)]
    assert len({tensor.data_ptr() for tensor in many}) == 2 * KEPT
    many.clear()
    assert len(memory._free) == KEPT
