"""Programs that were stored, as they were before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch._export.serde import serialize


@contextlib.contextmanager
def loaded_with_sizes(sizes: Mapping[str, int]) -> Iterator[None]:
    """Inside, ``torch.export.load`` gives symbols of these names the example sizes that they had.

    A stored program has those of whole sizes: of ``16 * s`` but not of ``s``, about which nothing can be asked then.
    """
    deserializer: Any = serialize.GraphModuleDeserializer
    parse = deserializer._parse_sym_expr

    def parse_and_tell(self: Any, text: Any, hint: Any = None) -> Any:
        found = parse(self, text, hint)
        environment = self.shape_env
        # torch 2.11 has the other names.
        known = getattr(environment, "backed_var_to_val", None)
        add = environment.add_var_to_val if known is None else environment.add_backed_var_to_val
        known = environment.var_to_val if known is None else known
        for symbol in getattr(found, "free_symbols", ()):
            if symbol.name in sizes and symbol not in known:
                add(symbol, sizes[symbol.name])
        return found

    deserializer._parse_sym_expr = parse_and_tell
    try:
        yield
    finally:
        deserializer._parse_sym_expr = parse
