"""The one options object. Compile specs are parsed into it once; nothing downstream sees strings."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping
from typing import Any, Literal

from etcuda.errors import OptionError, TargetError
from etcuda.target import CudaTarget, resolve_target

BACKEND_ID = "EtcudaBackend"
COMPILE_SPEC_KEY = "etcuda"
# Tag of external weights without a name of their own: ``save_program`` names their file after the program's. No
# ``ptd_name`` can be the same.
OWN_PTD_TAG = "etcuda-weights"

# Beyond them sums are no longer numbers of a double's range.
_MOST_SECONDS, _MOST_GIB = 1e12, 1e9

WeightsLocation = Literal["pte", "ptd"]


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise OptionError(f"option {name!r}: expected {expected}, got {got!r}.")


def _is_one_of(value: object, *choices: str) -> bool:
    return isinstance(value, str) and value in choices


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """How a delegated graph is compiled.

    Attributes:
        allow_tf32: let fp32 matrix products use TF32 tensor cores (relative error near 3e-4 instead of 1e-6).
        weights: ``"pte"`` keeps weights in the program; ``"ptd"`` puts them into an external data file.
        ptd_name: name, without suffix, of the external data file; ``None`` gives it the name of the program's file.
        host_isa: least x86-64 processor level that host code runs on: ``"x86-64-v3"`` (AVX2, FMA) or ``"x86-64-v4"``.
        progress: show a progress bar on a terminal while compiling; ``None`` decides by whether stderr is one.
        timeout_s: seconds after which one compile is given up.
        attention_kernels: attention through etcuda's own kernels where they serve it; otherwise through its formula.
        check_attention: compute every rewritten attention call both ways on random numbers, and fail if they differ.
        random_seed: first seed of the generator that random operators draw from; ``None`` leaves them to others.
        cache_dir: path, also as ``os.PathLike``, of where what was compiled is kept between exports; ``None`` is the
            user's cache directory.
        compile_cache_gib: GiB that compiled graphs take there at most; 0 compiles every graph anew.
        cudnn: let cuDNN compute convolutions in two dimensions where it is installed, and a kernel of the program's own
            where it is not; ``False`` generates each convolution, with what surrounds it, for the program alone.
        reroll: compile layers that repeat once; ``False`` compiles each, for comparison: results are the same.
        hopper_experts: on Hopper let a kernel in CUDA C++ multiply experts of many tokens, where it serves them.
    """

    allow_tf32: bool = False
    weights: WeightsLocation = "pte"
    ptd_name: str | None = None
    host_isa: Literal["x86-64-v3", "x86-64-v4"] = "x86-64-v3"
    progress: bool | None = None
    timeout_s: float = 3600.0
    attention_kernels: bool = True
    check_attention: bool = False
    random_seed: int | None = None
    cache_dir: str | None = None
    compile_cache_gib: float = 2.0
    cudnn: bool = True
    reroll: bool = True
    hopper_experts: bool = False

    def __post_init__(self) -> None:
        _expect(isinstance(self.allow_tf32, bool), "allow_tf32", "True or False", self.allow_tf32)
        _expect(_is_one_of(self.weights, "pte", "ptd"), "weights", "'pte' or 'ptd'", self.weights)
        is_name = self.ptd_name is None or (isinstance(self.ptd_name, str) and self.ptd_name.isidentifier())
        _expect(is_name, "ptd_name", "None or an identifier", self.ptd_name)
        is_isa = _is_one_of(self.host_isa, "x86-64-v3", "x86-64-v4")
        _expect(is_isa, "host_isa", "'x86-64-v3' or 'x86-64-v4'", self.host_isa)
        is_choice = self.progress is None or isinstance(self.progress, bool)
        _expect(is_choice, "progress", "None, True or False", self.progress)
        is_flag = isinstance(self.attention_kernels, bool)
        _expect(is_flag, "attention_kernels", "True or False", self.attention_kernels)
        _expect(isinstance(self.check_attention, bool), "check_attention", "True or False", self.check_attention)
        is_seed = isinstance(self.random_seed, int) and not isinstance(self.random_seed, bool)
        is_seed = self.random_seed is None or (is_seed and 0 <= self.random_seed < 2**63)
        _expect(is_seed, "random_seed", "None or an integer from 0 to 2**63 - 1", self.random_seed)
        seconds = self.timeout_s
        is_time = _is_number(seconds) and (0 < seconds < _MOST_SECONDS or seconds == math.inf)
        _expect(is_time, "timeout_s", "a positive number of seconds", seconds)
        if isinstance(self.cache_dir, os.PathLike):
            object.__setattr__(self, "cache_dir", os.fspath(self.cache_dir))
        folder = self.cache_dir
        is_path = folder is None or (isinstance(folder, str) and folder != "" and "\0" not in folder)
        _expect(is_path, "cache_dir", "None or the path of a folder", folder)
        size = self.compile_cache_gib
        _expect(_is_number(size) and 0 <= size < _MOST_GIB, "compile_cache_gib", "a number of GiB, 0 or more", size)
        _expect(isinstance(self.cudnn, bool), "cudnn", "True or False", self.cudnn)
        _expect(isinstance(self.reroll, bool), "reroll", "True or False", self.reroll)
        _expect(isinstance(self.hopper_experts, bool), "hopper_experts", "True or False", self.hopper_experts)

    @property
    def external_tag(self) -> str | None:
        """Tag of the data file that weights go to; ``None`` keeps them in the program."""
        if self.weights == "pte":
            return None
        return OWN_PTD_TAG if self.ptd_name is None else self.ptd_name

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CompileOptions:
        """Builds options from plain keys and values.

        Raises:
            OptionError: a key is unknown, or a value is not one the option takes.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise OptionError(f"option {key!r} is not known.{hint} Expected one of {', '.join(known)}.")
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class BackendConfig:
    """Everything ``preprocess`` needs to know: the method's name, the target and the options."""

    target: CudaTarget | Literal["host"]
    options: CompileOptions = CompileOptions()
    method: str = "forward"

    @property
    def is_host(self) -> bool:
        """Whether the code runs on the CPU."""
        return self.target == "host"

    def to_bytes(self) -> bytes:
        """The value of the one compile spec, in a canonical form."""
        target = self.target if isinstance(self.target, str) else dataclasses.asdict(self.target)
        value = {"target": target, "options": dataclasses.asdict(self.options), "method": self.method}
        return json.dumps(value, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> BackendConfig:
        """Parses what ``to_bytes`` wrote.

        Raises:
            OptionError: not what ``to_bytes`` writes, or an unknown option.
        """
        try:
            value = json.loads(data)
            target, options, method = value["target"], value["options"], value["method"]
            parsed = CudaTarget(**target) if isinstance(target, dict) else resolve_target(target)
        except TargetError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"the compile spec {COMPILE_SPEC_KEY!r} is not one that CudaPartitioner wrote ({error}). "
                "Expected JSON with target, options and method. Build compile specs through CudaPartitioner."
            ) from error
        return cls(target=parsed, options=CompileOptions.from_mapping(options), method=method)
