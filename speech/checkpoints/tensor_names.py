"""What a language model's torch module calls the tensors of a checkpoint."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorNameMap:
    """Which of a checkpoint's tensors are the language model's, and what its torch module calls them.

    ``rules``: (pattern of a checkpoint name, names in the module), the first that matches holds; no rule: the
    same name, and loading refuses what the module has not. Several names: they are stacked there along the
    first dimension. No name: a frozen part that the learner never sees. ``unsampled``: pattern of tensors
    that the learner trains and engines do not run.

    Example:
        TensorNameMap(((r"encoder\\..*", ()),)).module_names("lm_head.weight")  # ('lm_head.weight',)
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unsampled: str | None = None

    def module_names(self, name: str) -> tuple[str, ...]:
        """Names of the module's tensors that the checkpoint's tensor ``name`` is made of."""
        for pattern, templates in self.rules:
            if match := re.fullmatch(pattern, name):
                return tuple(match.expand(template) for template in templates)
        return (name,)

    def is_sampled(self, name: str) -> bool:
        """Whether engines have the checkpoint's tensor ``name``."""
        return bool(self.module_names(name)) and not (self.unsampled and re.fullmatch(self.unsampled, name))


UNCHANGED_NAMES = TensorNameMap()
"""Every tensor, under the checkpoint's own names."""
