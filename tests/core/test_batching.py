"""Batches: every task comes out once, threads read ahead, and a batch that does not fit is halved."""

import threading

import pytest
import torch

from clipgs.core.batching import in_batches
from clipgs.core.errors import ClipgsError
from clipgs.core.runner import Task

TASKS = [Task(str(number), "", number) for number in range(10)]


def read(number: int) -> int:
    if number == 3:
        raise ValueError("three cannot be read")
    return number * 10


def finish(result: int, was_read: int):
    if was_read == 70:
        raise ValueError("seven cannot be finished")
    return {"result": result, "read": was_read}, []


def run(tasks, size, compute, **changes):
    functions = {"read": read, "finish": finish} | changes
    return list(in_batches(tasks, 2, size, compute=compute, lower="what.key", **functions))


def test_each_task_has_its_own_result_or_error():
    batches = []

    def compute(numbers):
        batches.append(numbers)
        return [number + 1 for number in numbers]

    results = run(TASKS, 4, compute)
    assert batches == [[0, 10, 20], [40, 50, 60, 70], [80, 90]]
    assert sorted(task.payload for task, _ in results) == list(range(10))
    expected = {number: ({"result": number * 10 + 1, "read": number * 10}, []) for number in range(10)}
    expected |= {3: "ValueError: three cannot be read", 7: "ValueError: seven cannot be finished"}
    assert {task.payload: result for task, result in results} == expected


def test_while_one_batch_is_computed_the_next_is_read_and_the_last_is_finished():
    next_is_read, second_is_computed = threading.Event(), threading.Event()

    def read(number):
        if number >= 2:
            next_is_read.set()
        return number

    def compute(numbers):
        assert next_is_read.wait(10)
        if numbers == [2, 3]:
            second_is_computed.set()
        return numbers

    def finish(result, _):
        if result < 2:
            assert second_is_computed.wait(10)
        return {"result": result}, []

    results = run(TASKS[:4], 2, compute, read=read, finish=finish)
    assert [result for _, result in results] == [({"result": number}, []) for number in range(4)]


def test_when_memory_runs_out_the_batch_is_halved_and_read_again(caplog):
    sizes = []

    def compute(generators):
        numbers = [next(generator) for generator in generators]  # fails on what an earlier try used up
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("none left")
        return numbers

    results = run(
        TASKS[:5], 5, compute, read=lambda number: iter([number]), finish=lambda result, _: ({"result": result}, [])
    )
    assert sizes == [5, 2, 2, 1]
    assert sorted(result["result"] for _, (result, _) in results) == list(range(5))
    assert "going on with 2 objects a batch" in caplog.text


def test_what_is_not_an_objects_fault_stops_all():
    def no_memory(numbers):
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(ClipgsError, match=r"one object does not fit into the GPU's memory; lower what\.key"):
        run(TASKS, 4, no_memory)

    def no_disk(number):
        raise ClipgsError("the disk is full")

    with pytest.raises(ClipgsError, match="the disk is full"):
        run(TASKS, 4, lambda numbers: numbers, read=no_disk)
