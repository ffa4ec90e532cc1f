from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

FieldTuple = tuple[str, str, Sequence[int], int]

class State(TypedDict):
    continues: npt.NDArray[np.bool_]
    records: list[npt.NDArray[Any]]
    steps: list[npt.NDArray[Any]]
    seed: int
    draws: int
    appended: int

class Store:
    def __init__(
        self, observations: Sequence[FieldTuple], steps: Sequence[FieldTuple], capacity: int, seed: int
    ) -> None: ...
    def try_append(self, values: list[Any], continues: bool | None) -> bool: ...
    def extend(self, columns: list[npt.NDArray[Any]], rows: int, continues: Sequence[int]) -> None: ...
    def sample(self, out: list[npt.NDArray[Any]], rows: int, discount: float) -> None: ...
    def gather(self, ages: npt.NDArray[np.int64], out: list[npt.NDArray[Any]], discount: float) -> None: ...
    def state(self) -> State: ...
    def load(
        self,
        continues: npt.NDArray[np.bool_],
        records: list[npt.NDArray[Any]],
        steps: list[npt.NDArray[Any]],
        seed: int,
        draws: int,
        appended: int,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def appended(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    seed: int
    draws: int

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def uniform_indices(seed: int, draw: int, bound: int, count: int) -> npt.NDArray[np.uint64]: ...
