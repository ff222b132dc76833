"""What bench.house measures stays within its bounds: names with one meaning, no circles, no drawers."""

import re
from collections import Counter

from bench import house
from conf.schema import Config
from conf.study import StudyConfig

ALLOWED = {"OPTIONS", "T"}  # every model family has its options; a type variable
MODULES = house.read_modules()


def test_no_public_name_is_defined_in_two_modules() -> None:
    shared, _ = house.share_names(MODULES)
    assert {name: homes for name, homes in shared.items() if name not in ALLOWED} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert house.list_circles(house.import_edges(MODULES)) == []


def test_no_folder_is_a_drawer() -> None:
    assert max(Counter(module.path.parent for module in MODULES).values()) <= 25


def test_functions_are_named_by_more_than_one_word() -> None:
    functions, methods = house.split_functions(MODULES)
    assert sum(map(house.is_one_word, functions.values())) <= 0.30 * len(functions)
    assert sum(map(house.is_one_word, methods.values())) <= 0.70 * len(methods)


def test_the_map_says_how_many_settings_there_are() -> None:
    text = (house.ROOT / "docs/design.md").read_text()
    counted = re.search(r"A run has (\d+) settings.*A study file has (\d+)\.", text, re.DOTALL)
    assert counted is not None
    assert [int(number) for number in counted.groups()] == [*map(house.count_leaves, (Config, StudyConfig))]
