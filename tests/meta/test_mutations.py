"""What scripts/mutations.py takes out is there to be taken out; whether the tests miss it is seen when it is run."""

import re
from pathlib import Path

import pytest

from scripts.mutations import MUTATIONS, Mutation, mutated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_a_mutation_takes_out_occurs_once(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text("utf-8")
    changed = mutated(mutation, text)
    assert changed != text
    compile(changed, mutation.file, "exec")
    with pytest.raises(ValueError, match="0 times"):
        mutated(mutation, changed)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_test_that_is_to_miss_it_exists(mutation: Mutation) -> None:
    file, *_classes, name = mutation.test.split("::")
    assert re.search(rf"def {re.escape(name.partition('[')[0])}\(", (ROOT / file).read_text("utf-8"))
